"""dvc.yaml and quality/dvc.yaml say what the stages really read and run."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAIN, QUALITY = (yaml.safe_load((ROOT / name).read_text()) for name in ("dvc.yaml", "quality/dvc.yaml"))
STAGES, PROGRAMS = MAIN["stages"] | QUALITY["stages"], MAIN["vars"][0]
# They watch, or say when: a change must not cause a retrain.
OBSERVERS = {"src/vae/cores.py", "src/vae/live.py", "src/vae/tracking.py"}


def imported(path: Path) -> set[Path]:
    """The files of src/vae that a file imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vae":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vae."):
            names.add(node.module.removeprefix("vae."))
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("vae.") for alias in node.names if alias.name.startswith("vae.")}
    return {ROOT / "src/vae" / f"{name}.py" for name in names}


def closure(path: Path, observers: frozenset[str]) -> set[str]:
    """Everything a script imports from the library, transitively, short of the observers and what they import."""
    found, queue = set(), [path]
    while queue:
        for file in imported(queue.pop()):
            name = str(file.relative_to(ROOT))
            if name not in found and name not in observers:
                found.add(name)
                queue.append(file)
    return found


def outputs(spec: dict) -> set[str]:
    """The paths that a stage writes."""
    listed = [*spec.get("outs", []), *spec.get("metrics", [])]
    return {next(iter(item)) if isinstance(item, dict) else item for item in listed}


@pytest.mark.parametrize("stage", ["download", "train", "evaluate", "generate", "classifier", "quality"])
def test_code_dependencies_are_the_import_closure(stage):
    script = next(word for word in STAGES[stage]["cmd"].split() if word.startswith("pipeline/"))
    declared = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert declared == closure(ROOT / script, frozenset(OBSERVERS)) | {script}


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_command_is_declared(stage):
    """A stage reads and writes what its argv names, so argv and deps and outs must agree."""
    spec = STAGES[stage]
    declared = {*spec["deps"], *outputs(spec)}
    if stage == "train":
        declared.add("metrics/mlflow.json")  # the output of `track`, which a new training makes void
    if stage == "track":
        declared |= {"metrics/quality.json", "metrics/nearest.png"}  # of `quality`, which a new model makes void
    argv = [word for word in spec["cmd"].split() if "=" not in word][1:]
    assert argv[1] == "params.yaml"
    for word in [argv[0], *argv[2:]]:
        assert word in declared or any(item.startswith(f"{word}/") for item in declared), word


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_described(stage):
    assert len(STAGES[stage]["desc"]) > 20


def test_no_param_reaches_a_shell():
    """Interpolating params into a command would let `dvc exp run -S` inject shell."""
    for spec in STAGES.values():
        program, _, rest = spec["cmd"].partition(" ")
        assert program.removeprefix("${").removesuffix("}") in PROGRAMS
        assert "$" not in rest
    assert QUALITY["vars"][0].items() <= PROGRAMS.items()  # said twice, and the same
    assert not PROGRAMS.keys() & yaml.safe_load((ROOT / "params.yaml").read_text()).keys()


def test_the_quality_of_samples_is_apart():
    """`dvc repro` runs the five stages of dvc.yaml, which know nothing of those in quality/, not even their params."""
    assert list(MAIN["stages"]) == ["download", "train", "evaluate", "generate", "track"]
    made = {path for spec in QUALITY["stages"].values() for path in outputs(spec)}
    for spec in MAIN["stages"].values():
        assert not made & set(spec["deps"])
        assert not {param.partition(".")[0] for param in spec["params"]} & QUALITY["stages"].keys()
    assert all(spec["wdir"] == ".." for spec in QUALITY["stages"].values())


def test_the_classifier_does_not_depend_on_the_vae():
    """It is fitted once for all models that it measures."""
    deps = {path for path in QUALITY["stages"]["classifier"]["deps"] if not path.endswith(".py")}
    assert deps == {"data"}
    assert QUALITY["stages"]["classifier"]["params"] == ["classifier"]


def test_no_result_of_quality_is_in_the_cache_alone():
    """Else `dvc checkout` and `dvc exp apply` would fail in a clone where quality/dvc.yaml never ran."""
    for spec in QUALITY["stages"].values():
        for item in [*spec.get("outs", []), *spec.get("metrics", [])]:
            assert next(iter(item.values())) == {"cache": False}


def test_the_closure_finds_imports_inside_functions(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("def f():\n    from vae import metrics\n    return metrics\n")
    assert "src/vae/metrics.py" in closure(script, frozenset())


def test_only_tracking_and_the_served_model_import_mlflow():
    files = [*(ROOT / "src/vae").glob("*.py"), *(ROOT / "pipeline").glob("*.py")]
    importers = {
        path.name for path in files if "import mlflow" in path.read_text() or "from mlflow" in path.read_text()
    }
    assert importers == {"tracking.py", "serving.py"}


def test_the_library_never_imports_the_pipeline():
    for path in (ROOT / "src/vae").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "pipeline" for name in names), path
