"""dvc.yaml and quality/dvc.yaml list all that the stages read and write."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tools.deps import SOURCES, closure
from vae.evaluation import metrics

ROOT = Path(__file__).parents[1]
MAIN, QUALITY = (yaml.safe_load((ROOT / name).read_text()) for name in ("dvc.yaml", "quality/dvc.yaml"))
STAGES, PROGRAMS = MAIN["stages"] | QUALITY["stages"], MAIN["vars"][0]


def outputs(spec: dict) -> set[str]:
    """The paths that a stage writes."""
    listed = [*spec.get("outs", []), *spec.get("metrics", []), *spec.get("plots", [])]
    return {next(iter(item)) if isinstance(item, dict) else item for item in listed}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage):
    script = next(word for word in STAGES[stage]["cmd"].split() if word.startswith("pipeline/"))
    assert [dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")] == sorted(closure(script))


def test_no_stage_depends_on_code_that_only_observes():
    """A change of tracking/ or runtime/ must not train again. Only two modules decide a result: the data."""
    for stage, spec in STAGES.items():
        observers = [dep for dep in spec["deps"] if dep.startswith(("src/vae/tracking/", "src/vae/runtime/"))]
        assert observers == (sorted(SOURCES) if stage == "download" else [])


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_of_a_command_is_declared(stage):
    """A stage reads and writes the paths in its command, so they must be among its deps and outs."""
    spec = STAGES[stage]
    declared = {*spec["deps"], *outputs(spec)}
    if stage == "train":
        declared.add("metrics/mlflow.json")  # the output of `track`, which a new training deletes
    if stage == "track":
        declared |= {
            "metrics/quality.json",
            "metrics/nearest.png",
        }  # which `track` empties for a new model
    argv = [word for word in spec["cmd"].split() if "=" not in word and not word.startswith("--")][1:]
    assert argv[1] == "params.yaml"
    for word in [argv[0], *argv[2:]]:
        assert word in declared or any(item.startswith(f"{word}/") for item in declared), word


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_described(stage):
    assert len(STAGES[stage]["desc"]) > 20


def test_no_param_reaches_a_shell():
    """If commands contained params, `dvc exp run -S` could run any shell command."""
    for spec in STAGES.values():
        program, _, rest = spec["cmd"].partition(" ")
        assert program.removeprefix("${").removesuffix("}") in PROGRAMS
        assert "$" not in rest
    assert QUALITY["vars"][0] == PROGRAMS  # repeated there
    assert not PROGRAMS.keys() & yaml.safe_load((ROOT / "params.yaml").read_text()).keys()


def test_the_quality_of_samples_is_a_separate_pipeline():
    """`dvc repro` runs the five stages of dvc.yaml, which use neither files nor params of the stages in quality/."""
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


def test_every_result_of_quality_is_in_git():
    """Otherwise `dvc checkout` and `dvc exp apply` would fail in a clone in which quality/dvc.yaml never ran."""
    for spec in QUALITY["stages"].values():
        for item in [*spec.get("outs", []), *spec.get("metrics", []), *spec.get("plots", [])]:
            assert next(iter(item.values())) == {"cache": False}


@pytest.mark.parametrize("spec", [MAIN, QUALITY], ids=["dvc.yaml", "quality/dvc.yaml"])
def test_every_chart_has_a_template_and_the_columns_that_it_needs(spec):
    """Templates of the project are in .dvc/plots. They may name columns of plots/bound.csv."""
    listed = [item for stage in spec["stages"].values() for item in stage.get("plots", [])] + spec["plots"]
    charts = [values for item in listed if isinstance(item, dict) for values in item.values() if "x" in values]
    assert charts
    for chart in charts:
        assert {"x", "y", "title", "x_label", "y_label"} <= chart.keys()
        if name := chart.get("template"):
            template = json.loads((ROOT / f".dvc/plots/{name}.json").read_text())
            fields = set(re.findall(r'"field": "([a-z_]+)"', json.dumps(template))) - {"rev"}
            assert fields == ({"upper_nats", "lower_nats"} if name == "bound" else set())
    assert {"upper_nats", "lower_nats"} <= set(metrics.CURVE)


def test_every_stage_can_be_restored_from_the_run_cache():
    """DVC leaves out a stage if a file under `outs` is not cached. Metrics and plots may be uncached."""
    for stage, spec in MAIN["stages"].items():
        uncached = [item for item in spec.get("outs", []) if isinstance(item, dict)]
        assert not uncached or stage == "track", stage  # the store decides the result of `track`
