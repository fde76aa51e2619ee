"""`make deps`: writes the code that each stage imports into its `deps` list in dvc.yaml and quality/dvc.yaml."""

import ast
import re
from pathlib import Path

from vae.errors import InputError
from vae.runtime import command

ROOT = Path(__file__).parents[1]
OBSERVERS = ("src/vae/runtime/", "src/vae/tracking/")  # a change of these files changes no result of a stage
MIRRORS = "src/vae/runtime/mirrors.py"  # the exception: it decides what is downloaded


def imported(path: Path) -> set[str]:
    """The full names of everything that a Python file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def library_files(path: Path) -> set[str]:
    """The files of src/vae that a Python file imports, relative to the root."""
    files = set()
    for name in imported(path):
        module = ROOT / "src" / name.replace(".", "/")
        for file in (module.with_suffix(".py"), module.parent.with_suffix(".py")):  # a module, or a name in a module
            if name.startswith("vae.") and file.is_file():
                files.add(str(file.relative_to(ROOT)))
    return files


def closure(script: Path) -> set[str]:
    """All files of the library that a script imports, directly or not, without the observers and their imports."""
    found: set[str] = set()
    queue = [script]
    while queue:
        for file in library_files(queue.pop()) - found:
            if file == MIRRORS or not file.startswith(OBSERVERS):
                found.add(file)
                queue.append(ROOT / file)
    return found


def rewritten(text: str) -> str:
    """The text of a dvc.yaml with the closure of each stage's script among its sorted `deps`."""
    result: list[str] = []
    script = ""
    deps: list[str] | None = None
    for line in text.splitlines():
        if deps is not None and not line.startswith("    - "):  # the end of the list
            result += sorted({*deps, *(f"    - {file}" for file in {script, *closure(ROOT / script)})})
            deps = None
        if found := re.search(r"pipeline/\w+\.py", line) if deps is None else None:
            script = found[0]
        if deps is None:
            result.append(line)
            deps = [] if line == "    deps:" else None
        elif not line.endswith(".py"):
            deps.append(line)
    return "\n".join(result) + "\n"


def main(pipeline: Path, quality: Path, check: bool) -> None:
    """Writes the lists, or with `--check` only says whether they are up to date."""
    for path in (pipeline, quality):
        text = path.read_text()
        if (new := rewritten(text)) == text:
            continue
        if check:
            raise InputError(f"{path}: the deps are not the imports of the stages; `make deps` writes them")
        path.write_text(new)
        print(f"{path}: deps written; `dvc commit` if the results are the same, else `dvc repro`")


if __name__ == "__main__":
    command.run(main)
