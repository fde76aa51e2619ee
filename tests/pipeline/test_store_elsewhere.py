"""The store in a new clone, in a folder that was moved, and after its files were deleted."""

import copy
import shutil
from pathlib import Path

import mlflow
import pytest

from tests.pipeline.project import Project

pytestmark = pytest.mark.pipeline

RESULT = ("params.yaml", "metrics/mlflow.json")
SYNC, DOCTOR = "tools/sync.py", "tools/doctor.py"


def in_folder(project: Project, folder: Path) -> Project:
    """The same project in another folder, which has a store of its own."""
    other = copy.copy(project)
    other.folder, other.uri = folder, f"sqlite:///{folder / 'mlflow.db'}"
    return other


def champion(project: Project) -> str:
    """The id of the run of the champion, which must answer."""
    mlflow.set_tracking_uri(project.uri)
    model = mlflow.pyfunc.load_model("models:/vae-digits@champion")
    (answer,) = model.predict([{"task": "generate", "n": 1, "seed": 0}])
    assert answer["images"]
    return project.client.get_model_version_by_alias("vae-digits", "champion").run_id


def test_a_clone_is_recorded_moved_and_mended_without_running_anything(project, tmp_path):
    project.dvc("exp", "run", "--temp", "--name", "mine", "--set-param", "evaluate.seed=5")
    project.dvc("remote", "add", "--default", "box", str(tmp_path / "remote"))
    project.commit()
    project.dvc("push")
    clone = in_folder(project, tmp_path / "clone")
    project.run("git", "clone", "--quiet", str(project.folder), str(clone.folder))

    assert "`dvc pull` brings them from a remote" in clone.error(SYNC, *RESULT, "")
    doctor = clone.script(DOCTOR, *RESULT, check=False)
    assert doctor.returncode == 1
    assert "has no run in this store; `make sync` records it too" in doctor.stdout
    clone.dvc("pull")
    assert "no whole run" in clone.script(SYNC, *RESULT, "", "--dry").stdout
    assert clone.runs() == {}

    # A system around it has a run of its own, in another experiment.
    foreign = clone.client.create_run(clone.client.create_experiment("theirs")).info.run_id
    settings = {"MLFLOW_RUN_ID": foreign, "MLFLOW_EXPERIMENT_NAME": "theirs", "MLFLOW_ENABLE_ASYNC_LOGGING": "true"}
    done = clone.script(SYNC, *RESULT, "", **settings)
    assert done.stderr.count("MLflow: not used: MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME;") == 1
    (first,) = clone.runs()
    assert first in done.stdout
    run = clone.assert_whole(first)
    assert clone.epochs(first) == [1, 2, 3]
    model = clone.client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert model.experiment_id == run.info.experiment_id
    assert clone.client.get_run(foreign).data.tags.keys() == {"mlflow.runName"}
    assert clone.recorded() == first
    assert first in clone.script(SYNC, *RESULT, "HEAD").stdout
    assert "has no run" not in clone.script(DOCTOR, *RESULT, check=False).stdout
    assert "REV=nothing: neither a DVC experiment nor a commit" in clone.error(SYNC, *RESULT, "nothing")

    moved = in_folder(project, tmp_path / "moved é")
    clone.folder.rename(moved.folder)
    done = moved.script(SYNC, *RESULT, "", "--dry")
    assert "the store was moved; its files were in" in done.stderr
    assert first in done.stdout
    moved.assert_whole(first)
    assert champion(moved) == first
    project.params(evaluate={"seed": 6})  # results of other parameters are never recorded as results of these
    assert "`dvc repro` (evaluate: changed deps params.yaml)" in project.error(SYNC, *RESULT, "")

    shutil.rmtree(moved.folder / "mlartifacts")
    sick = moved.script(DOCTOR, *RESULT, check=False).stdout
    assert f"({first}): its record has lost hashes.json" in sick
    assert "vae-digits version 1, the champion, cannot be loaded" in sick
    mended = moved.script(DOCTOR, *RESULT, "--mend", check=False).stdout
    assert f"hashes.json; recorded as {first}" in mended
    assert "its record" not in moved.script(DOCTOR, *RESULT, check=False).stdout
    assert moved.runs().keys() == {first}
    assert champion(moved) == first
    assert {key for key, _ in moved.pictures(first)} >= {"samples_grid", "plots_reconstructions"}


def test_an_experiment_and_a_commit_get_their_runs_in_a_new_store(project, tmp_path):
    project.dvc("exp", "run", "--temp", "--name", "mine", "--set-param", "evaluate.seed=5")
    other = project.at(f"sqlite:///{tmp_path / 'other.db'}")
    for revision in ("mine", "HEAD"):
        assert "no whole run" in other.script(SYNC, *RESULT, revision, "--dry").stdout
        other.script(SYNC, *RESULT, revision)
        assert "no whole run" not in other.script(SYNC, *RESULT, revision, "--dry").stdout
    assert not other.changes()
    names = [run.data.tags.get("dvc.experiments") for run in other.runs().values()]
    assert sorted(map(str, names)) == ["None", "mine"]
    for run_id in other.runs():
        other.assert_whole(run_id)
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / "models")
    assert "DVC's cache lacks" in project.at(f"sqlite:///{tmp_path / 'third.db'}").error(SYNC, *RESULT, "HEAD")
