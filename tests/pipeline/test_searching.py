"""A search: each trial is an experiment and a run, and a search that was killed goes on."""

import json

import optuna
import pytest
import yaml

from tests.pipeline.project import wait_for

pytestmark = [pytest.mark.pipeline, pytest.mark.scale]

SMALL = {"architecture": "mlp", "encoder": [16], "decoder": [16], "prior": "standard-normal"}
SEARCH = {
    "study": "tried",
    "trials": 3,
    "seed": 0,
    "startup": 1,
    "pruning": True,
    "set": {"train.optimizer": "adam", "train.epochs": "3"},
    "space": {"train.learning_rate": {"low": 1e-6, "high": 0.02, "log": True}},
}
RATES = (0.02, 0.01, 1e-6)  # of the three trials; with the last one a model learns nothing
COMMAND = ("python", "tools/search.py", "params.yaml", "search.yaml", "metrics/validation.json")


def test_a_killed_search_goes_on_and_its_best_trial_comes_back(project):
    """No trial is lost or doubled. A trial that is behind is pruned, and both MLflow and optuna show it."""
    before = project.runs()
    (project.folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))
    project.params(model=SMALL)
    project.commit()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=f"sqlite:///{project.folder / 'search.db'}", study_name="tried")
    for rate in RATES:
        study.enqueue_trial({"train.learning_rate": rate})
    with project.after_one_epoch(lambda: project.start(*COMMAND, "", PYTHONPATH="src")):
        project.stop()
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "WAITING", "WAITING"]

    printed = project.run(*COMMAND, "", PYTHONPATH="src").stdout
    assert "resuming after epoch 1" in printed  # the killed trial
    ended = {trial.params["train.learning_rate"]: trial for trial in study.trials if trial.state.name != "FAIL"}
    states = {rate: trial.state.name for rate, trial in ended.items()}
    assert states == {0.02: "COMPLETE", 0.01: "COMPLETE", 1e-6: "PRUNED"}, printed
    assert len(study.trials) == 4  # one of them is the killed one
    assert sorted(project.experiments()) == ["tried-0", "tried-1"]

    wait_for(lambda: not project.processes())  # the observer of the pruned trial ends its run
    made = {run.info.run_name: run for run_id, run in project.runs().items() if run_id not in before}
    assert sorted(made) == ["tried-0", "tried-1", "tried-2"]
    assert {name: run.info.status for name, run in made.items()} == {
        "tried-0": "FINISHED",
        "tried-1": "FINISHED",
        "tried-2": "KILLED",
    }
    assert "behind" in made["tried-2"].data.tags["vae.pruned"]
    assert not project.checkpoints()
    parent, children = project.group("tried")
    assert children == {run.info.run_id for run in made.values()}
    assert "2 runs are complete, 1 were pruned" in parent.data.tags["mlflow.note.content"]
    pictures = {item.path for item in project.client.list_artifacts(parent.info.run_id)}
    assert {"parallel_coordinate.png", "optimization_history.png"} <= pictures

    again = project.run(*COMMAND, "", PYTHONPATH="src").stdout  # everything is done
    assert "dvc exp apply" in again
    assert len(project.runs()) == len(before) + 3
    best = min((0, 1), key=lambda number: made[f"tried-{number}"].data.metrics["val_neg_elbo_nats"])
    assert f"dvc exp apply tried-{best}" in again
    project.dvc("exp", "apply", f"tried-{best}")
    assert project.recorded() == made[f"tried-{best}"].info.run_id
    assert yaml.safe_load((project.folder / "params.yaml").read_text())["train"]["learning_rate"] == RATES[best]
    values = json.loads((project.folder / "metrics/validation.json").read_text())
    assert values["val_neg_elbo_nats"] == pytest.approx(study.best_value)
