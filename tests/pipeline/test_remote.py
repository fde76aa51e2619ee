"""Data, models and experiments for a team: a DVC remote for files, and a bare Git repository for experiments."""

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.project import Project

pytestmark = [pytest.mark.pipeline, pytest.mark.scale]

RESULT = ("params.yaml", "metrics/mlflow.json")
SYNC, WHICH, DOCTOR = (f"tools/{name}.py" for name in ("sync", "which", "doctor"))
NAME = "mine,too"
LOGIN = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_DEFAULT_REGION": "us-east-1"}
ALONE = {  # of this machine: no proxy, no keys of the user, no service of a cloud that has keys
    "NO_PROXY": "127.0.0.1,localhost",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The address of an S3 service with an empty bucket, `box`."""
    moto = pytest.importorskip("moto.server", reason="moto is missing: `make test-scale` installs it")
    pytest.importorskip("dvc_s3", reason="dvc-s3 is missing: `make test-scale` installs it")
    import boto3

    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        keys = {name.lower().replace("default_region", "region").removeprefix("aws_"): v for name, v in LOGIN.items()}
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name=keys.pop("region"),
            **{f"aws_{name}": value for name, value in keys.items()},
        )
        client.create_bucket(Bucket="box")
        yield address
    finally:
        server.stop()


def with_remote(project: Project, kind: str, folder: Path, request: pytest.FixtureRequest) -> Project:
    """The project with a remote for its files, and a bare repository as `origin`. Both are in its last commit."""
    project.dvc("remote", "add", "--default", "box", str(folder / "box") if kind == "folder" else "s3://box/vae")
    other = copy.copy(project)
    (folder / "empty").touch()
    files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(folder / "empty"))
    other.environment = project.environment | ALONE | files
    if kind == "S3":
        project.dvc("remote", "modify", "box", "endpointurl", request.getfixturevalue("endpoint"))
        other.environment |= LOGIN
    other.commit()
    other.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(folder / "bare.git"))
    other.run("git", "remote", "add", "origin", str(folder / "bare.git"))
    other.run("git", "push", "--quiet", "origin", "main")
    return other


def in_clone(project: Project, folder: Path) -> Project:
    """A clone of the bare repository on another machine: with a store and a cache of its own."""
    other = copy.copy(project)
    other.folder, other.uri = folder / "clone", f"sqlite:///{folder / 'clone/mlflow.db'}"
    other.environment = project.environment | {"DVC_SITE_CACHE_DIR": str(folder / "site")}
    project.run("git", "clone", "--quiet", str(folder / "bare.git"), str(other.folder))
    for name in ("user.name", "user.email"):
        other.run("git", "config", name, "other")
    return other


def recorded_in_a_clone(first: Project, folder: Path) -> Project:
    """A clone that gets the files from the remote. Nothing runs there, and the present state gets its run."""
    first.dvc("push", "--run-cache", "--all-commits")
    clone = in_clone(first, folder)
    assert "up to date" in clone.dvc("repro", "--pull", "--allow-missing").stdout
    assert not (clone.folder / "data").exists()  # what is up to date is not fetched
    clone.dvc("pull", "--run-cache")
    assert "up to date" in clone.dvc("repro").stdout
    assert clone.hashes() == first.hashes()
    clone.script(SYNC, *RESULT, "")
    assert clone.runs().keys() == {clone.recorded()}
    clone.assert_whole(clone.recorded())
    return clone


def keys(project: Project) -> set[str]:
    """The keys of all states that have a run."""
    return {run.data.tags["vae.key"] for run in project.runs().values()}


def test_a_clone_gets_files_and_experiments_from_a_folder(project, tmp_path, request):
    first = with_remote(project, "folder", tmp_path, request)
    first.dvc("exp", "run", "--temp", "--name", NAME, "--set-param", "evaluate.seed=5")
    first.dvc("exp", "push", "origin", NAME)
    clone = recorded_in_a_clone(first, tmp_path)
    present = clone.recorded()
    clone.dvc("exp", "pull", "origin", NAME)
    assert f"experiment {NAME} (" in clone.script(DOCTOR, *RESULT, check=False).stdout
    clone.script(SYNC, *RESULT, NAME)
    (run_id,) = clone.runs().keys() - {present}
    assert keys(clone) == keys(first)
    assert clone.assert_whole(run_id).data.tags["dvc.experiments"] == "mine\\,too"
    assert f"{run_id} ({NAME}, FINISHED) is DVC experiment {NAME};" in clone.script(WHICH, *RESULT, NAME).stdout
    assert "nothing to mend" in clone.script(DOCTOR, *RESULT).stdout

    the_model_in_another_project(first, tmp_path)
    every_name_leads_to_the_run(clone, run_id, first)


def the_model_in_another_project(project: Project, folder: Path) -> None:
    """`dvc artifacts get` takes the model of a tag, which names a version of it, and needs no clone."""
    project.run("git", "tag", "--annotate", "vae@v1.0.0", "--message", "the first one")
    project.run("git", "push", "--quiet", "origin", "vae@v1.0.0")
    elsewhere = copy.copy(project)
    elsewhere.folder = folder / "another"
    elsewhere.folder.mkdir()
    elsewhere.dvc("artifacts", "get", str(folder / "bare.git"), "vae", "--rev", "v1.0.0", "--out", "vae.safetensors")
    model = (elsewhere.folder / "vae.safetensors").read_bytes()
    assert hashlib.sha256(model).hexdigest() == project.hashes()["models/vae.safetensors"]


def every_name_leads_to_the_run(project: Project, run_id: str, first: Project) -> None:
    """After DVC has applied, renamed or saved an experiment, or made a branch of it. Old names lead there too."""
    project.run("git", "restore", ".")
    project.dvc("exp", "apply", NAME)
    assert "up to date" in project.dvc("repro").stdout
    assert project.recorded() in first.runs()  # as in the commit of the experiment, which nothing can change
    project.script(SYNC, *RESULT, "")
    assert project.recorded() == run_id
    project.dvc("exp", "save", "--name", "saved", "dvc.yaml")
    project.dvc("exp", "rename", NAME, "renamed")
    assert "`make sync REV=renamed` gives it one" in project.error(WHICH, *RESULT, "renamed")
    project.script(SYNC, *RESULT, "renamed")
    project.dvc("exp", "branch", "saved", "branch")
    for name in (NAME, "saved", "renamed"):
        assert f"MLflow run {run_id} " in project.script(WHICH, *RESULT, name).stdout
    assert f"MLflow run {run_id}" in project.script(SYNC, *RESULT, "branch", "--dry").stdout
    assert "nothing to mend" in project.script(DOCTOR, *RESULT).stdout


def test_a_clone_gets_files_from_s3_and_errors_show_no_key(project, tmp_path, request):
    """The errors of DVC and of `make sync` name the way out."""
    first = with_remote(project, "S3", tmp_path, request)
    first.params(generate={"seed": 1})
    first.dvc("repro")
    first.commit()  # the second state
    first.run("git", "push", "--quiet", "origin", "main")
    project = recorded_in_a_clone(first, tmp_path)
    project.dvc("fetch", "--all-commits")
    project.script(SYNC, *RESULT, "HEAD~1")
    assert len(keys(project)) == len(project.runs()) == 2
    assert keys(project) == keys(first)
    project.run("git", "restore", ".")
    (project.folder / "models/vae.safetensors").unlink()
    for path in (project.folder / ".dvc/cache/files/md5").rglob("*"):
        if path.is_file():
            path.unlink()
    other = project.at(f"sqlite:///{project.folder / 'third.db'}")
    nobody = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    line = other.error(SYNC, *RESULT, "")
    assert "`dvc pull` brings them from a remote" in line
    for key, value, settings in (
        ("url", "s3://box/vae", nobody),
        ("url", "s3://no-such-bucket/vae", {}),
        ("endpointurl", "http://127.0.0.1:9", {"AWS_MAX_ATTEMPTS": "1"}),
    ):
        other.dvc("remote", "modify", "--local", "box", key, value)
        done = other.dvc("pull", check=False, **settings)
        print(done.stderr)
        assert done.returncode
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stdout + done.stderr
