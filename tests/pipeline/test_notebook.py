"""The Python lines of docs/experiments.md, and `mlflow run`."""

import json

import pytest

from tests.pipeline.project import ROOT

pytestmark = pytest.mark.pipeline


def test_the_lines_for_a_notebook_find_the_best_run_and_draw_from_its_model(project):
    page = (ROOT / "docs/experiments.md").read_text()
    (lines,) = [part.partition("```")[0] for part in page.split("```python\n")[1:] if "search_runs" in part]
    assert lines.count("'mnist'") == 1
    results = "{'runs': list(runs.run_id), 'drawn': picture.size, 'figures': list(experiments.val_neg_elbo_nats)}"
    code = lines.replace("'mnist'", "'digits'") + f"\nimport json; print(json.dumps({results}))"
    found = json.loads(project.run("python", "-c", code).stdout.splitlines()[-1])
    assert found["runs"] == [project.recorded()]
    assert found["drawn"] == [280, 28]
    assert found["figures"] == [project.json("metrics/validation.json")["val_neg_elbo_nats"]] * 2  # workspace and HEAD


def test_mlflow_run_leaves_one_record_and_a_foreign_run_as_it_is(project):
    foreign = project.recorded()
    before = {run_id: run.to_dictionary() for run_id, run in project.runs().items()}
    project.params(evaluate={"seed": 5})
    command = ("mlflow", "run", ".", "-e", "train", "--env-manager", "local")
    project.run(*command, MLFLOW_TRACKING_URI=project.uri, MLFLOW_RUN_ID=foreign, MLFLOW_DISABLE_TELEMETRY="true")
    assert project.runs().keys() - before.keys() == {project.recorded()}
    project.assert_whole(project.recorded())
    assert project.client.get_run(foreign).to_dictionary() == before[foreign]
    (launched,) = project.client.search_runs(["0"])
    assert launched.info.status == "FINISHED"
    assert launched.data.tags["mlflow.note.content"] == f"The record is run {project.recorded()}"
