"""The layout: which file may import which, and what every file of the repository obeys."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import editorconfig
import pytest
import yaml

from tools.deps import imported

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "src/vae"
CORE = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__"}
ROOMS = {"evaluation", "runtime", "serving", "tracking"}
# For each room: what it may import of the library, and which packages besides the standard library.
RULES = {
    "": (CORE, {"torch", "numpy", "pydantic", "yaml", "safetensors"}),
    "evaluation": (CORE | {"evaluation"}, {"torch", "numpy", "PIL", "matplotlib", "tqdm"}),
    "runtime": ({"errors", "idx", "runtime"}, {"filelock", "numpy", "PIL", "psutil", "requests", "sklearn", "torch"}),
    "serving": (CORE | {"serving"}, {"torch", "mlflow", "numpy", "PIL", "pydantic"}),
    "tracking": (
        {"params", "errors", "idx", "runtime", "evaluation.plots", "tracking"},
        {"mlflow", "dvc", "filelock", "matplotlib", "numpy", "optuna", "PIL", "psutil", "pydantic", "safetensors"}
        | {"sqlalchemy", "yaml"},
    ),
}
RULES["runtime"][1].update({"tqdm", "urllib3"})
RULES["tracking"][1].update({"matplotlib", "optuna", "pydantic"})


def listed(*arguments: str) -> list[Path]:
    """The tracked files of the repository."""
    command = ["git", "ls-files", "-z", "--cached", *arguments]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def forbidden(path: Path, room: str) -> set[str]:
    """The imports of a file that its room may not have."""
    inside, packages = RULES[room]
    found = set()
    for name in imported(path):
        first, _, rest = name.partition(".")
        if first == "vae":
            allowed = any(rest == item or rest.startswith(f"{item}.") for item in inside)
        else:
            allowed = first in packages or first in sys.stdlib_module_names
        if not allowed:
            found.add(name)
    return found


@pytest.mark.parametrize("room", RULES, ids=lambda room: room or "core")
def test_imports_run_one_way(room):
    files = list((LIBRARY / room).glob("*.py"))
    assert len(files) > 1
    assert {path.name: found for path in files if (found := forbidden(path, room))} == {}


def test_a_wrong_import_is_found(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os\nimport torch\nfrom vae import prior\n\ndef f():\n    from vae.runtime import cores\n")
    assert forbidden(script, "") == {"vae.runtime.cores"}
    assert forbidden(script, "evaluation") == {"vae.runtime.cores"}
    assert forbidden(script, "runtime") == {"vae.prior"}  # torch is allowed inside a function
    assert forbidden(script, "serving") == {"vae.runtime.cores"}
    assert forbidden(script, "tracking") == {"torch", "vae.prior"}
    script.write_text("import mlflow\nimport dvc.api\nfrom vae.evaluation import metrics, plots\n")
    assert forbidden(script, "") == {"mlflow", "dvc.api", "vae.evaluation.metrics", "vae.evaluation.plots"}
    assert forbidden(script, "evaluation") == {"mlflow", "dvc.api"}
    assert forbidden(script, "runtime") == forbidden(script, "")
    assert forbidden(script, "serving") == {"dvc.api", "vae.evaluation.metrics", "vae.evaluation.plots"}
    assert forbidden(script, "tracking") == {"vae.evaluation.metrics"}
    script.write_text("from . import prior\nfrom .layers import mlp\n")  # `make deps` would not see these
    assert forbidden(script, "") == {"None.prior", "layers.mlp"}


def test_the_rooms_are_packages_and_no_others():
    """The files __init__.py are in no `deps`, so only tracking/, on which no stage depends, may have code there."""
    folders = {path.parent.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py")}
    assert folders == {".", *ROOMS}
    assert all((LIBRARY / folder / "__init__.py").is_file() for folder in folders)
    assert [folder for folder in folders if (LIBRARY / folder / "__init__.py").read_text()] == ["tracking"]


def loads_torch(modules: list[str]) -> bool:
    """Whether a new process that imports these modules loads torch."""
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


@pytest.mark.parametrize("files", ["runtime/[a-z]*.py", "tracking/[a-z]*.py", "serving/requests.py"])
def test_torch_is_not_loaded_by(files):
    """Stages and tools that only look things up start without it. MLflow imports requests.py when it logs a model."""
    modules = [path.relative_to(LIBRARY.parent).with_suffix("") for path in LIBRARY.glob(files)]
    assert not loads_torch([".".join(module.parts) for module in modules])


def test_a_load_of_torch_is_found():
    assert loads_torch(["vae.layers"])


@pytest.mark.parametrize("folder", ["src", "pipeline", "tools", "bench"])
def test_nothing_imports_the_scripts(folder):
    """Except tests. The modules of bench/ import each other."""
    allowed = {"bench"} & {folder}
    for path in (ROOT / folder).rglob("*.py"):
        names = {name.partition(".")[0] for name in imported(path)}
        assert not names & {"pipeline", "tools", "bench", "tests"} - allowed, path


def test_each_script_has_its_stage_or_its_make_target():
    stages = [spec["cmd"] for name in ("dvc.yaml", "quality/dvc.yaml") for spec in stages_of(name).values()]
    scripts = sorted(match for command in stages for match in re.findall(r"pipeline/\w+\.py", command))
    assert scripts == sorted(f"pipeline/{path.name}" for path in (ROOT / "pipeline").glob("*.py"))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"tools/{path.name}" in makefile for path in (ROOT / "tools").glob("*.py"))


def stages_of(name: str) -> dict[str, dict]:
    return yaml.safe_load((ROOT / name).read_text())["stages"]


def test_every_make_target_is_phony_and_explained():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    (phony,) = re.findall(r"^\.PHONY: (help .*)$", makefile, flags=re.M)
    assert set(phony.split()) == targets
    assert set(re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.M)) == targets


def test_a_pipeline_script_has_no_maths():
    """It may call torch for tensors and threads, and leaves every computation to the library."""
    for path in (ROOT / "pipeline").glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"sigmoid", "exp", "mean", "std", "sum", "softmax", "matmul", "decode"}, path


def text_files() -> list[Path]:
    binary = {".png", ".safetensors", ".npz", ".gz"}
    return [path for path in listed() if path.suffix not in binary]


def test_text_files_obey_the_editorconfig():
    wrong = []
    for path in text_files():
        rules, content = editorconfig.get_properties(str(path)), path.read_bytes()
        text = content.decode(rules["charset"])
        lines = text.split("\n")
        wrong += [f"{path}: line end"] * (rules["end_of_line"] == "lf" and "\r" in text)
        if rules.get("insert_final_newline") == "true":
            wrong += [f"{path}: last line"] * (bool(text) and not text.endswith("\n"))
        if rules.get("indent_style") == "tab":  # continued lines have spaces behind the tab
            wrong += [f"{path}:{number}: indent" for number, line in enumerate(lines, 1) if line.startswith(" ")]
        if rules.get("indent_style") == "space":
            wrong += [f"{path}:{number}: indent" for number, line in enumerate(lines, 1) if line.startswith("\t")]
        if rules.get("trim_trailing_whitespace") == "true":
            wrong += [f"{path}:{number}: space" for number, line in enumerate(lines, 1) if line != line.rstrip()]
        most = int(rules.get("max_line_length", 10**6))
        wrong += [f"{path}:{number}: long" for number, line in enumerate(lines, 1) if len(line) > most]
    assert wrong == []


def test_a_clone_has_the_same_bytes_whatever_git_does_with_line_ends(tmp_path):
    """With `core.autocrlf` on, git would otherwise change every text file, and DVC would run every stage again."""
    original, clone = tmp_path / "original", tmp_path / "clone"
    for path in listed():
        (original / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, original / path.relative_to(ROOT))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "--quiet"], ["add", "--all", "--force"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], cwd=original, check=True)
    subprocess.run(["git", "-c", "core.autocrlf=true", "clone", "--quiet", str(original), str(clone)], check=True)
    for path in listed():
        name = path.relative_to(ROOT)
        assert (clone / name).read_bytes() == (original / name).read_bytes(), name


def test_a_merge_leaves_no_conflict_marks_in_results(tmp_path):
    """Both branches have run. The text results of the current branch stay whole, and git says that they conflict."""
    locks = ("dvc.lock", "quality/dvc.lock")
    outs = [
        item
        for name in ("dvc.yaml", "quality/dvc.yaml")
        for stage in stages_of(name).values()
        for item in outputs(stage)
    ]
    results = {*locks, *(out for out in outs if out.endswith((".json", ".csv")))}
    assert {"metrics/evaluation.json", "metrics/train.csv", "metrics/mlflow.json", "metrics/quality.json"} <= results
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]

    def commit(content: str) -> None:
        for name in results:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        for command in (["add", "--all"], ["commit", "--quiet", "--message", content]):
            subprocess.run([*git, *command], cwd=tmp_path, check=True)

    subprocess.run([*git, "init", "--quiet", "--initial-branch", "main"], cwd=tmp_path, check=True)
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    commit("base")
    subprocess.run([*git, "checkout", "--quiet", "-b", "other"], cwd=tmp_path, check=True)
    commit("theirs")
    subprocess.run([*git, "checkout", "--quiet", "main"], cwd=tmp_path, check=True)
    commit("ours")
    assert subprocess.run([*git, "merge", "other"], cwd=tmp_path, capture_output=True).returncode == 1
    assert {(tmp_path / name).read_text() for name in results} == {"ours"}
    listing = ["git", "diff", "--name-only", "--diff-filter=U"]
    unmerged = subprocess.run(listing, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert set(unmerged.split()) == results


def outputs(stage: dict) -> list[str]:
    """The paths of a stage's outputs, metrics and plots."""
    items = [item for kind in ("outs", "metrics", "plots") for item in stage.get(kind, [])]
    return [name for item in items for name in (item if isinstance(item, dict) else [item])]


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[0] == version


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 120


def test_links_and_pictures_of_the_documentation_exist():
    """Each leads to a tracked file, which a clone has too, or to a folder with such files."""
    files = listed()
    known = {*files, *(folder for path in files for folder in path.parents)}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
        assert links
        for target in links:
            assert target.startswith("https://") or (page.parent / target).resolve() in known, f"{page.name}: {target}"


def test_links_to_headings_lead_to_one():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\((?!https://)([^)#\s]*)#([^)]+)\)", page.read_text()):
            assert anchor in anchors(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.fixture
def file_map() -> str:
    """The map of the files in README.md."""
    text = (ROOT / "README.md").read_text()
    return text[text.index("## Files") :].split("```")[1].strip("\n")


def mapped(lines: list[str]) -> list[str]:
    """The paths in the left columns of the map. An indented path is inside the last folder with a smaller indent."""
    paths, folders = [], [""]  # the open folder of each depth
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        for column in re.split(r" {2,}", line.strip()):
            if not re.fullmatch(r"[\w./-]+/|[\w./-]+\.\w+|Makefile", column):
                break  # the right column
            paths.append(folders[depth] + column)
            if column.endswith("/"):
                folders[depth + 1 :] = [paths[-1]]
    return paths


def test_every_path_of_the_file_map_exists(file_map):
    paths = mapped(file_map.splitlines())
    assert {"params.yaml", "src/vae/", "src/vae/prior.py", "src/vae/tracking/store.py"} <= set(paths)
    for path in paths:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_the_file_map_has_every_file(file_map):
    """It has each module of the library, and each file and folder of the repository's top level that a reader may
    want to open. Hidden files, this page, and files that only tools read are left out."""
    locks, tools_only = {"dvc.lock", "requirements.lock", "requirements-scale.lock"}, {"CITATION.cff", "pyproject.toml"}
    block = file_map
    modules = {path.name for path in LIBRARY.rglob("*.py")} - {"__init__.py"}
    assert modules <= set(re.findall(r"\w+\.py\b", block))
    assert set(re.findall(r"\w+\.py\b", block)) - modules == set()
    top = {path.relative_to(ROOT).parts[0] for path in listed()} - tools_only - locks - {"README.md"}
    for name in sorted(name for name in top if not name.startswith(".")):
        assert re.search(rf"(?<![\w/.]){re.escape(name)}{'/' * (ROOT / name).is_dir()}", block), name
