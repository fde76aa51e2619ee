"""`make deps`: writes the code that each stage imports into its `deps` list in dvc.yaml and quality/dvc.yaml."""

from vae.runtime import command

import ast
import re
from pathlib import Path

from vae.errors import InputError

OBSERVERS = ("src/vae/runtime/", "src/vae/tracking/")  # a change of these files changes no result of a stage
SOURCES = {"src/vae/runtime/images.py", "src/vae/runtime/mirrors.py"}  # the exceptions: they make the data


def imported(path: Path) -> set[str]:
    """The full names of everything that a Python file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = (node for node in nodes if isinstance(node, ast.ImportFrom))
    return names | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def library_files(path: Path) -> set[str]:
    """The files of src/vae that a Python file imports."""
    modules = [Path("src", *name.split(".")) for name in imported(path) if name.startswith("vae.")]
    files = {file for module in modules for file in (module.with_suffix(".py"), module.parent.with_suffix(".py"))}
    return {str(file) for file in files if file.is_file()}  # of a module, or of a name in a module


def closure(script: str) -> set[str]:
    """A script, and all files of the library that it imports, directly or not, without observers and their imports."""
    found, queue = {script}, [script]
    while queue:
        for file in library_files(Path(queue.pop())) - found:
            if file in SOURCES or not file.startswith(OBSERVERS):
                found.add(file)
                queue.append(file)
    return found


def rewritten(text: str) -> str:
    """The text of a dvc.yaml with the closure of each stage's script among its sorted `deps`."""

    def stage(found: re.Match[str]) -> str:
        command, deps = found.groups()
        script = re.search(r"pipeline/\w+\.py", command)
        if script is None:
            raise InputError(f"no script of pipeline/ in the command of a stage: {command.strip()}")
        others = re.findall(r"    - .*(?<!\.py)\n", deps)
        lines = {*others, *(f"    - {file}\n" for file in closure(script[0]))}
        return "".join([command, "    deps:\n", *sorted(lines)])

    return re.sub(r"(    cmd: (?:(?!  \w).*\n)+?)    deps:\n((?:    - .*\n)*)", stage, text)


def main(pipeline: Path, quality: Path, check: bool) -> None:
    stale = {path: text for path in (pipeline, quality) if (text := rewritten(path.read_text())) != path.read_text()}
    for path, text in stale.items():
        if check:
            raise InputError(f"{path}: the deps are not the imports of the stages; `make deps` writes them")
        path.write_text(text)
        print(f"{path}: deps written; `dvc commit` if the results are the same, else `dvc repro`")


if __name__ == "__main__":
    command.run(main)
