"""However the pipeline is started, the results are the same, and each state has one run."""

import json
import re
import shutil
import time

import pytest

from tests.pipeline.project import BITWISE, wait_for

pytestmark = pytest.mark.pipeline


def test_repro_with_nothing_to_do_is_quick_and_records_nothing(project):
    before = project.runs()
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        assert "up to date" in project.dvc("repro").stdout
        seconds.append(time.monotonic() - started)
    assert project.runs().keys() == before.keys()
    assert min(seconds) < project.first_repro_seconds / 3  # half a second and ten on a quiet machine


def test_evaluate_only_change_retrains_nothing_and_makes_one_new_whole_run(project):
    before, model = project.runs(), project.hashes()["models/vae.safetensors"]
    project.params(evaluate={"importance_samples": 8})
    printed = project.dvc("repro").stdout
    assert "Running stage 'evaluate'" in printed
    assert "Running stage 'train'" not in printed
    assert project.hashes()["models/vae.safetensors"] == model
    assert project.runs().keys() - before.keys() == {project.recorded()}
    run = project.assert_whole(project.recorded())
    assert run.data.metrics["importance_samples"] == 8
    assert run.data.tags["git.dirty"] == "true"
    assert "importance_samples: 8" in project.text(project.recorded(), "working-tree.diff")


def test_an_earlier_configuration_is_restored_and_its_run_found(project):
    first, hashes = project.recorded(), project.hashes()
    project.params(evaluate={"importance_samples": 8})
    project.dvc("repro")
    before = project.runs()
    assert project.recorded() != first
    project.params(evaluate={"importance_samples": 4})
    printed = project.dvc("repro").stdout
    assert "Stage 'evaluate' is cached - skipping run" in printed
    assert printed.count("Running stage") == 1  # `track`, which asks the store
    assert project.runs().keys() == before.keys()
    assert project.recorded() == first
    assert project.hashes() == hashes
    assert project.json("metrics/evaluation.json")["importance_samples"] == 4
    assert project.client.get_run(first).data.metrics["importance_samples"] == 4


def test_generate_only_change_makes_one_new_whole_run(project):
    before = project.runs()
    project.params(generate={"seed": 7})
    printed = project.dvc("repro").stdout
    assert "Running stage 'train'" not in printed
    assert "Running stage 'evaluate'" not in printed
    assert project.runs().keys() - before.keys() == {project.recorded()}
    project.assert_whole(project.recorded())


def test_workspace_temp_and_queued_experiments_come_to_the_same(project):
    """One run in one store and the same bits, with a rate that YAML 1.1 reads as text, and two workers at once."""
    before = project.runs()
    rate = "train.learning_rate=1e-05"
    project.dvc("exp", "run", "--temp", "--name", "temp-one", "--set-param", rate)
    queued = ("--set-param", "train.learning_rate=0.003", "--set-param", "model.latent_dim=3,5")
    project.dvc("exp", "run", "--queue", *queued)
    project.dvc("queue", "start", "--jobs", "2")
    # An experiment that has just ended is missing from the list for a moment.
    wait_for(lambda: len(re.findall("Success|Failed", project.dvc("queue", "status").stdout)) == 2, 1)
    assert "Failed" not in project.dvc("queue", "status").stdout

    shutil.rmtree(project.folder / ".dvc/cache/runs")  # so that the workspace trains by itself
    project.dvc("exp", "run", "--name", "workspace-one", "--set-param", rate)
    workspace = project.hashes()
    project.assert_whole(project.recorded())

    made = {run_id: run for run_id, run in project.runs().items() if run_id not in before}
    names = sorted(name for run in made.values() for name in run.data.tags["dvc.experiments"].split(","))
    assert names == sorted(project.experiments())  # none lost, none doubled
    assert len(names) == 4
    same = [run for run in made.values() if "temp-one" in run.data.tags["dvc.experiments"]]
    assert {"workspace-one", "temp-one"} == set(same[0].data.tags["dvc.experiments"].split(","))  # one state, one run
    assert len(made) == 3
    for run_id, run in made.items():
        project.assert_whole(run_id)
        changed = f"latent_dim={run.data.params['model.latent_dim']}, train.learning_rate=0.003"
        assert run.info.run_name == ("temp-one" if run_id == same[0].info.run_id else changed)
        assert run.info.artifact_uri.startswith((project.folder / "mlartifacts").as_uri())
    queued_ids = {run_id for run_id in made if run_id != same[0].info.run_id}
    baseline = project.run("git", "rev-parse", "HEAD").stdout
    parent, children = project.group(f"queue-{baseline[:7]}")  # one, although two workers recorded at the same time
    assert children == queued_ids
    assert parent.data.tags["mlflow.note.content"].startswith("2 runs are complete, 0 were pruned")
    assert "parallel_coordinate.png" in {item.path for item in project.client.list_artifacts(parent.info.run_id)}
    recorded = json.loads(project.text(same[0].info.run_id, "hashes.json"))
    assert {name: recorded[name] for name in BITWISE} == workspace
    project.dvc("exp", "apply", "temp-one")
    assert project.hashes() == workspace
    assert project.recorded() == same[0].info.run_id
