"""The real dvc and the real mlflow, on a copy of this repository with a tiny model on the bundled digits."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import requests
import yaml
from mlflow import MlflowClient

from vae import cores, params, tracking

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[1]
TINY = {
    "data": {"name": "digits", "validation": 300},
    "model": {"latent_dim": 4, "channels": [4, 8]},
    "train": {"epochs": 2, "prior_epochs": 1, "batch_size": 128, "threads": 1},
    "evaluate": {"importance_samples": 4, "grey_samples": 2},
    "generate": {"rows": 3, "columns": 3, "interpolations": 2},
    "classifier": {"channels": [4, 8], "features": 8, "epochs": 4, "batch_size": 32, "warmup_steps": 5, "threads": 1},
    "quality": {"samples": 100, "draws": 2, "searched": 20},
}
CURVES = {"train_neg_elbo_nats", "val_neg_elbo_nats", "train_rate_nats", "train_distortion_nats", "lr"}
BITWISE = ("models/vae.safetensors", "metrics/train.csv", "metrics/evaluation.json", "samples/grid.png")
WAIT_SECONDS = 120


class Project:
    """A repository of its own, with its own store and its own DVC configuration."""

    def __init__(self, folder, scratch):
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DVC", "MNIST"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_GLOBAL_CONFIG_DIR": str(scratch / "dvc-global"),
            "DVC_SYSTEM_CONFIG_DIR": str(scratch / "dvc-system"),
            "DVC_SITE_CACHE_DIR": str(scratch / "dvc-site"),
            "GOMP_SPINCOUNT": "20000",
        }

    def run(self, *command, check=True, **environment):
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def dvc(self, *arguments, **options):
        return self.run("dvc", *arguments, **options)

    def script(self, name, *arguments, **options):
        return self.run("python", f"pipeline/{name}.py", *arguments, PYTHONPATH="src", **options)

    def commit(self):
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    @property
    def client(self):
        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def runs(self):
        experiment = self.client.get_experiment_by_name("vae")
        return (
            {run.info.run_id: run for run in self.client.search_runs([experiment.experiment_id])} if experiment else {}
        )

    def params(self, **sections):
        path = self.folder / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        for name, values in sections.items():
            tree[name] |= values
        path.write_text(yaml.safe_dump(tree, sort_keys=False))

    def recorded(self):
        return json.loads((self.folder / "metrics/mlflow.json").read_text())["run_id"]

    def hashes(self):
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in BITWISE}

    def assert_whole(self, run_id):
        """A complete run, as the contract lists it, with every artifact still readable."""
        run = self.client.get_run(run_id)
        assert run.info.status == "FINISHED"
        tree = yaml.safe_load(self.text(run_id, "params.yaml"))
        for section in tracking.TOOLS:
            del tree[section]
        leaves = {f"{section}.{key}": str(value) for section, keys in tree.items() for key, value in keys.items()}
        assert set(run.data.params) == set(leaves)
        assert float(run.data.params["train.learning_rate"]) == float(leaves["train.learning_rate"])
        curves = list(csv.DictReader(self.text(run_id, "metrics/train.csv").splitlines()))
        points = sorted(self.client.get_metric_history(run_id, "val_neg_elbo_nats"), key=lambda point: point.step)
        assert [point.step for point in points] == [int(row["epoch"]) for row in curves]
        assert [point.value for point in points] == pytest.approx([float(row["val_neg_elbo_nats"]) for row in curves])
        evaluation = json.loads(self.text(run_id, "metrics/evaluation.json"))
        for name, value in evaluation.items():
            if not isinstance(value, str):
                assert run.data.metrics[name] == pytest.approx(value)
                assert len(self.client.get_metric_history(run_id, name)) == 1  # no curve under a test metric's name
        artifacts = {item.path for item in self.client.list_artifacts(run_id)}
        assert {"params.yaml", "dvc.yaml", "dvc.lock", "working-tree.diff", "hashes.json", "images"} <= artifacts
        keys = {item.path.split("/")[1].split("+")[0] for item in self.client.list_artifacts(run_id, "images")}
        assert {"samples_grid", "plots_reconstructions"} <= {key.split("%")[0] for key in keys}
        assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == [leaves["data.name"]]
        assert len(run.outputs.model_outputs) == 1
        assert run.data.tags["git.commit"] in self.run("git", "rev-list", "HEAD").stdout.split()
        model = self.client.download_artifacts(run_id, "models/vae.safetensors")
        assert hashlib.sha256(Path(model).read_bytes()).hexdigest() == run.data.tags["vae.model_sha256"]
        return run

    def assert_quality(self, run_id):
        """The run has the quality of the samples in metrics/quality.json, each figure once, and their picture."""
        file, logged = self.folder / "metrics/quality.json", self.client.get_run(run_id).data.metrics
        figures = {name: value for name, value in json.loads(file.read_text()).items() if isinstance(value, float)}
        assert len(figures) > 10
        assert {name: logged.get(name) for name in figures} == figures
        assert all(len(self.client.get_metric_history(run_id, name)) == 1 for name in figures)
        assert self.text(run_id, "metrics/quality.json") == file.read_text()
        assert any("quality_nearest" in item.path for item in self.client.list_artifacts(run_id, "images"))

    def text(self, run_id, name):
        return Path(self.client.download_artifacts(run_id, name)).read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The repository's files as they stand, committed anew, after a first `dvc repro`."""
    scratch = tmp_path_factory.mktemp("pipeline")
    folder = scratch / "project"
    folder.mkdir()
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    generated = ("dvc.lock", "quality/dvc.lock", "models/", "metrics/", "plots/", "samples/", "docs/")
    for name in files:
        if not name.startswith(generated) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    project = Project(folder, scratch)
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "config", "user.name", "test")
    project.params(**TINY)
    project.commit()
    project.dvc("repro")
    project.commit()
    return project


def test_first_repro_makes_one_finished_run(project):
    assert list(project.runs()) == [project.recorded()]
    run = project.assert_whole(project.recorded())
    assert run.data.tags["git.dirty"] == "false"
    assert "epoch_seconds" in run.data.metrics  # the live run was completed, and no second one written
    pictures = [item.path for item in project.client.list_artifacts(run.info.run_id, "images")]
    steps = {int(re.split("[%+]", path)[2]) for path in pictures if "training_samples" in path}
    assert steps == {1, 2}  # of three epochs, the prior's own among them


def test_repro_with_nothing_to_do_is_quick_and_records_nothing(project):
    before = project.runs()
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        assert "up to date" in project.dvc("repro").stdout
        seconds.append(time.monotonic() - started)
    assert project.runs().keys() == before.keys()
    assert min(seconds) < 3  # one second on a quiet machine; the README has the measured figure


def test_training_again_to_the_same_result_is_recorded_and_leaves_no_open_run(project):
    """As in a fresh clone of a published state: the lock file already has these very results."""
    before = project.runs()
    project.dvc("repro", "--force", "--single-item", "train")
    assert "Running stage 'track'" in project.dvc("repro").stdout
    assert project.runs().keys() == before.keys() == {project.recorded()}
    assert not project.run("git", "status", "--porcelain").stdout


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
    before = project.runs()
    project.run("git", "checkout", "--quiet", "--", "params.yaml")
    project.dvc("repro")
    assert project.runs().keys() == before.keys()
    assert json.loads((project.folder / "metrics/evaluation.json").read_text())["importance_samples"] == 4
    assert project.client.get_run(project.recorded()).data.metrics["importance_samples"] == 4
    project.run("git", "checkout", "--quiet", "--", ".")


def test_generate_only_change_makes_one_new_whole_run(project):
    before = project.runs()
    project.params(generate={"seed": 7})
    printed = project.dvc("repro").stdout
    assert "Running stage 'train'" not in printed
    assert "Running stage 'evaluate'" not in printed
    assert len(project.runs().keys() - before.keys()) == 1
    project.assert_whole(project.recorded())
    project.run("git", "checkout", "--quiet", "--", ".")
    project.dvc("checkout", "--force")


def test_workspace_temp_and_queued_experiments_come_to_the_same(project):
    """One record in one store and the same bits, with a rate that YAML 1.1 reads as text and two workers at once."""
    before = project.runs()
    rate = "train.learning_rate=1e-05"
    project.dvc("exp", "run", "--name", "workspace-one", "--set-param", rate)
    workspace = project.hashes()
    project.assert_whole(project.recorded())
    project.run("git", "checkout", "--quiet", "--", ".")
    project.dvc("checkout", "--force")
    shutil.rmtree(project.folder / ".dvc/cache/runs")  # or the others would be restored, and prove nothing

    project.dvc("exp", "run", "--temp", "--name", "temp-one", "--set-param", rate)
    project.dvc(
        "exp", "run", "--queue", "--set-param", "train.learning_rate=0.003", "--set-param", "model.latent_dim=3,5"
    )
    project.dvc("queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 300
    while any(word in project.dvc("queue", "status").stdout for word in ("Running", "Queued")):
        assert time.monotonic() < deadline, project.dvc("queue", "status").stdout
        time.sleep(1)
    assert "Failed" not in project.dvc("queue", "status").stdout

    made = {run_id: run for run_id, run in project.runs().items() if run_id not in before}
    names = sorted(name for run in made.values() for name in run.data.tags["dvc.experiments"].split(","))
    listed = sorted(line.split()[-1].strip("[]") for line in project.dvc("exp", "list", "--name-only").stdout.split())
    assert names == listed  # none lost, none doubled
    assert len(names) == 4
    same = [run for run in made.values() if "temp-one" in run.data.tags["dvc.experiments"]]
    assert {"workspace-one", "temp-one"} == set(same[0].data.tags["dvc.experiments"].split(","))  # one state, one run
    assert len(made) == 3
    for run_id, run in made.items():
        project.assert_whole(run_id)
        assert run.info.run_name in names
        assert run.info.artifact_uri.startswith((project.folder / "mlartifacts").as_uri())
    recorded = json.loads(project.text(same[0].info.run_id, "hashes.json"))
    assert {name: recorded[name] for name in BITWISE} == workspace
    project.dvc("exp", "apply", "temp-one")
    assert project.hashes() == workspace
    assert project.recorded() == same[0].info.run_id
    project.run("git", "checkout", "--quiet", "--", ".")
    project.dvc("checkout", "--force")


def train(project, folder, **environment):
    """Starts the train stage alone, as DVC would, with its outputs in a folder of its own."""
    arguments = [
        "params.yaml",
        "data",
        f"{folder}/vae.safetensors",
        f"{folder}/train.csv",
        f"{folder}/validation.json",
        f"{folder}/run.json",
    ]
    environment = {"PYTHONPATH": "src", "DVC_ROOT": str(project.folder), **environment}
    return subprocess.Popen(
        ["python", "pipeline/train.py", *arguments],
        cwd=project.folder,
        env=project.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition):
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return value


def test_killed_training_ends_as_killed_resumes_and_gives_the_same_bits(project):
    project.params(train={"epochs": 100, "seed": 11})
    before = project.runs()
    with train(project, "killed") as process:
        new = wait_for(lambda: project.runs().keys() - before.keys()).pop()
        wait_for(lambda: project.client.get_metric_history(new, "val_neg_elbo_nats"))  # it moves while it works
        assert project.client.get_run(new).info.status == "RUNNING"
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: project.client.get_run(new).info.status == "KILLED")
    assert not (project.folder / "killed/vae.safetensors").exists()

    with train(project, "killed") as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resuming after epoch" in output
    assert project.runs().keys() - before.keys() == {new}  # the same run goes on
    assert project.client.get_run(new).info.status == "RUNNING"  # open, for the track stage

    with train(project, "whole", DVC_ROOT=str(project.folder / "elsewhere")) as process:
        process.communicate()
    assert process.returncode == 0
    for name in ("vae.safetensors", "train.csv"):
        assert (project.folder / "killed" / name).read_bytes() == (project.folder / "whole" / name).read_bytes()
    assert not list((project.folder / ".checkpoints").glob("*.pt"))
    for folder in ("killed", "whole", "elsewhere"):
        shutil.rmtree(project.folder / folder)
    project.client.set_terminated(new, "KILLED")
    project.run("git", "checkout", "--quiet", "--", ".")


def test_training_waits_for_cores_that_another_has(project, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(project.folder))
    project.params(train={"seed": 17})
    before = project.runs()
    with cores.turn(os.cpu_count()):
        process = train(project, "waiting")
        new = wait_for(lambda: project.runs().keys() - before.keys()).pop()
        time.sleep(3)  # longer than it trains
        assert not project.client.get_metric_history(new, "epoch_seconds")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    epochs = project.client.get_metric_history(new, "epoch_seconds")
    assert len(epochs) == 3
    assert sum(epoch.value for epoch in epochs) < 3  # without the waiting
    shutil.rmtree(project.folder / "waiting")
    project.client.set_terminated(new, "KILLED")
    project.run("git", "checkout", "--quiet", "--", ".")


def test_terminated_training_ends_as_killed(project):
    project.params(train={"epochs": 100000, "seed": 12})
    before = project.runs()
    with train(project, "terminated") as process:
        new = wait_for(lambda: project.runs().keys() - before.keys()).pop()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert project.client.get_run(new).info.status == "KILLED"
    project.run("git", "checkout", "--quiet", "--", ".")


def test_interrupted_after_its_last_epoch_it_has_nothing_to_train_again(project):
    """While the observer still waits for a store that does not answer."""
    project.params(train={"seed": 18})
    before, folder = project.runs(), project.folder / "interrupted"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with train(project, "interrupted", MLFLOW_TRACKING_URI=uri) as process:
            wait_for((folder / "vae.safetensors").is_file)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
    model = (folder / "vae.safetensors").read_bytes()
    shutil.rmtree(folder)  # as dvc does before it runs a stage
    with train(project, "interrupted") as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resuming after epoch 3" in output
    assert (folder / "vae.safetensors").read_bytes() == model
    for new in project.runs().keys() - before.keys():
        project.client.set_terminated(new, "KILLED")
    shutil.rmtree(folder)
    project.run("git", "checkout", "--quiet", "--", ".")


def test_diverged_training_ends_as_failed_with_one_clear_line(project):
    before, model = project.runs(), project.hashes()["models/vae.safetensors"]
    project.params(train={"learning_rate": 1e30})
    done = project.dvc("repro", check=False)
    assert done.returncode
    assert "error: training diverged" in done.stderr
    assert "train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    new = project.runs().keys() - before.keys()
    assert [project.client.get_run(run_id).info.status for run_id in new] == ["FAILED"]
    project.run("git", "checkout", "--quiet", "--", ".")
    project.dvc("checkout", "--force")
    assert project.hashes()["models/vae.safetensors"] == model  # nothing that existed is lost


def test_store_that_is_down_does_not_stop_the_training_and_is_caught_up_with(project):
    project.params(train={"seed": 13})
    before = project.runs()
    done = project.dvc("repro", check=False, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode
    assert "Running stage 'generate'" in done.stdout
    assert "error: MLflow store http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    printed = project.dvc("repro").stdout
    assert "Running stage 'train'" not in printed
    assert project.runs().keys() - before.keys() == {project.recorded()}
    project.assert_whole(project.recorded())


def test_new_store_gets_the_same_state_whole(project, tmp_path):
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    project.dvc("repro", "--single-item", "--force", "track", MLFLOW_TRACKING_URI=uri)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    epochs = TINY["train"]["epochs"] + TINY["train"]["prior_epochs"]
    assert len(client.get_metric_history(runs[0].info.run_id, "val_neg_elbo_nats")) == epochs
    project.run("git", "checkout", "--quiet", "--", ".")
    project.dvc("checkout", "--force")


@contextlib.contextmanager
def server(command, health, folder, environment):
    """A server's address while it runs; `command` begins it, and is told its port, and `health` is where it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"

    def up():
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(address + health, timeout=60).ok

    try:
        wait_for(up)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_a_server_gets_the_state_whole(project, tmp_path):
    """`mlflow server`, which asks for more than its own database does."""
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path / 'served.db'}", "--artifacts-destination", str(tmp_path)]
    command = ["mlflow", "server", *stores, "--host", "127.0.0.1", "--workers", "1"]
    environment = project.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with server(command, "/health", tmp_path, environment) as uri:
        project.dvc("repro", "--single-item", "--force", "track", MLFLOW_TRACKING_URI=uri)
        client = MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
        assert run.info.status == "FINISHED"
        assert run.info.run_id == project.recorded()
        assert len(run.outputs.model_outputs) == 1
        assert client.get_model_version_by_alias("vae-digits", "champion").run_id == run.info.run_id
        assert {"samples", "plots", "hashes.json"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    project.run("git", "checkout", "--quiet", "--", ".")


def test_a_record_that_was_cut_short_is_gone_on_with(project, tmp_path, monkeypatch):
    """Another state of the same model has a run of its own meanwhile, and nothing is logged twice."""
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(project.folder)
    files = ("data", "models/vae.safetensors", "metrics/train.csv", "metrics/evaluation.json", "plots", "samples")
    state = tracking.State(Path("params.yaml"), *map(Path, files))
    changed = tmp_path / "params.yaml"
    changed.write_text(state.params.read_text().replace("grey_samples: 2", "grey_samples: 3"))
    assert changed.read_text() != state.params.read_text()

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Store, "set_tags", lambda *_: os.kill(os.getpid(), signal.SIGINT))  # the last request
        with pytest.raises(KeyboardInterrupt):
            tracking.record(state, project.folder)
    other = tracking.record(dataclasses.replace(state, params=changed), project.folder)
    run_id = tracking.record(state, project.folder)

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert {(run.info.run_id, run.info.status) for run in runs} == {(run_id, "FINISHED"), (other, "FINISHED")}
    run = client.get_run(run_id)
    epochs = TINY["train"]["epochs"] + TINY["train"]["prior_epochs"]
    for name in run.data.metrics:
        assert len(client.get_metric_history(run_id, name)) == (epochs if name in CURVES else 1), name
    assert len(run.outputs.model_outputs) == 1
    assert len(client.search_model_versions(f"run_id = '{run_id}'")) == 1
    pictures = [re.split("[%+]", item.path)[0] for item in client.list_artifacts(run_id, "images")]
    assert len({*pictures}) * 2 == len(pictures)  # a picture and its thumbnail


def test_run_from_a_dirty_experiment_is_reproduced_bit_for_bit(project):
    """Also with an uncommitted change to code and a new file of any encoding, which only the run's diff still knows."""
    path = project.folder / "src/vae/plots.py"
    path.write_text(path.read_text().replace("GAP = 2", "GAP = 3"))
    notes = project.folder / "notes.txt"
    notes.write_bytes(b"caf\xe9\r\n")
    project.dvc("exp", "run", "--name", "dirty", "--set-param", "train.seed=14")
    run = project.recorded()
    project.assert_whole(run)
    notes.unlink()
    project.run("git", "checkout", "--quiet", "--", ".")
    project.dvc("checkout", "--force")
    before = project.runs()
    done = project.script("reproduce", "params.yaml", run)
    assert done.stdout.count("the same, bit for bit") == len(json.loads(project.text(run, "hashes.json")))
    assert "reproduced: every file is the same" in done.stdout
    assert (project.folder / f".dvc/tmp/worktrees/{run}/notes.txt").read_bytes() == b"caf\xe9\r\n"
    assert project.runs().keys() == before.keys()
    assert not project.run("git", "status", "--porcelain").stdout  # the user's tree is not touched


def test_reproduction_says_how_far_apart_a_file_is(project):
    """The check can fail: a recorded hash and file that the pipeline does not come to are reported."""
    from vae import reproduction

    folder, recorded = project.folder, project.folder / "recorded"
    (recorded / "metrics").mkdir(parents=True)
    text = (folder / "metrics/evaluation.json").read_text()
    changed = json.loads(text) | {"active_units": json.loads(text)["active_units"] + 5}
    (recorded / "metrics/evaluation.json").write_text(json.dumps(changed))
    hashes = {"metrics/evaluation.json": "0", "metrics/none.json": "0"}
    assert reproduction.compare(folder, hashes, tracking.file_sha256, recorded) == 2
    assert "largest difference 5" in reproduction.distance(
        folder / "metrics/evaluation.json", recorded / "metrics/evaluation.json"
    )
    shutil.rmtree(recorded)


def test_links_and_doctor(project):
    """Which run is this experiment; a lost run is recorded again from DVC's cache; a stuck one is ended."""
    result = ("params.yaml", "metrics/mlflow.json")
    run = next(run for run in project.runs().values() if "dirty" in run.data.tags.get("dvc.experiments", ""))
    assert run.info.run_id in project.script("which", *result, "dirty").stdout
    assert "DVC experiment dirty" in project.script("which", *result, run.info.run_id).stdout
    unknown = project.script("which", *result, "nothing-of-the-kind", check=False)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: nothing-of-the-kind")

    assert "nothing to mend" in project.script("doctor", *result).stdout
    project.client.delete_run(run.info.run_id)
    stuck = project.client.create_run(run.info.experiment_id, run_name="stuck")
    tags = {"vae.place": "elsewhere:/of/another"}
    foreign = project.client.create_run(run.info.experiment_id, run_name="foreign", tags=tags)
    sick = project.script("doctor", *result, check=False)
    assert sick.returncode == 1
    assert "experiment dirty" in sick.stdout
    assert "stuck" in sick.stdout
    before = project.runs()
    project.script("doctor", *result, "--mend")
    assert project.client.get_run(stuck.info.run_id).info.status == "KILLED"
    assert project.client.get_run(foreign.info.run_id).info.status == "RUNNING"  # who trains it knows
    project.client.delete_run(foreign.info.run_id)
    again = project.runs().keys() - before.keys()
    assert len(again) == 1
    again = project.client.get_run(again.pop())
    assert again.data.tags["dvc.experiments"] == "dirty"
    assert again.data.tags["vae.key"] == run.data.tags["vae.key"]
    assert "nothing to mend" in project.script("doctor", *result).stdout
    assert again.info.run_id in project.script("which", *result, "dirty").stdout

    project.dvc("exp", "remove", "dirty")
    orphan = project.script("doctor", *result, check=False)
    assert orphan.returncode == 0  # nothing is lost
    assert f"make reproduce RUN={again.info.run_id}" in orphan.stdout


def test_model_is_served_and_outlives_bad_requests(project):
    """`mlflow models serve` in a process of its own: every task, 400 for what is wrong, and no pickle in the model."""
    run = project.recorded()
    command = ["mlflow", "models", "serve", "-m", f"runs:/{run}/model", "--env-manager", "local"]
    environment = project.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{project.folder / 'mlflow.db'}"}

    def post(*requests_):
        url = f"{address}/invocations"
        body = json.dumps({"inputs": list(requests_)})  # which writes NaN, as clients in Python do
        return requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=60)

    with server(command, "/ping", "/", environment) as address:  # the model must not lean on the repository
        first = post({"task": "generate", "n": 2, "seed": 3})
        assert first.status_code == 200
        images = first.json()["predictions"][0]["images"]
        assert [len(image) for image in images] == [784, 784]
        encoded = post({"task": "encode", "images": images}).json()["predictions"][0]
        assert [len(mu) for mu in encoded["mu"]] == [TINY["model"]["latent_dim"]] * 2
        decoded = post({"task": "decode", "latents": encoded["mu"]}, {"task": "reconstruct", "images": images})
        one, other = (np.array(item["images"]) for item in decoded.json()["predictions"])
        np.testing.assert_allclose(one, other, atol=1e-4)
        for wrong, reason in [
            ({"task": "generate", "n": 10**9, "seed": 0}, "from 1 to 1000"),
            ({"task": "encode", "images": [[0.5] * 783]}, "784"),
            ({"task": "encode", "images": [[math.nan] * 784]}, "[0, 1]"),
            ({"task": "decode", "latents": [[0.0]]}, "values each"),
            ({"task": "paint"}, "must be one of"),
        ]:
            answer = post(wrong)
            assert 400 <= answer.status_code < 500, answer.text
            assert reason in answer.text
            assert len(answer.text) < 1000 or wrong["task"] == "encode"
        assert post({"task": "generate", "n": 2, "seed": 3}).json() == first.json()  # it lives on, and is seeded
    uri = project.client.get_run(run).outputs.model_outputs[0].model_id
    stored = Path(project.client.get_logged_model(uri).artifact_location.removeprefix("file://"))
    assert (stored / "MLmodel").is_file()
    assert not [path for path in stored.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]


def test_the_champion_is_the_best_on_the_validation_split(project, monkeypatch):
    client = project.client
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)  # put back at the end, as the next line sets it too
    mlflow.set_tracking_uri(client.tracking_uri)  # for clients of mlflow's own
    name = "vae-digits"
    versions = client.search_model_versions(f"name = '{name}'")
    best = min(versions, key=lambda version: float(version.tags["val_neg_elbo_nats"]))
    champion = client.get_model_version_by_alias(name, "champion")
    assert len(versions) > 3
    assert float(champion.tags["val_neg_elbo_nats"]) == float(best.tags["val_neg_elbo_nats"])

    config = params.load(project.folder / "params.yaml")
    store, experiment = SimpleNamespace(client=client), client.get_run(champion.run_id).info.experiment_id
    runs = [client.create_run(experiment).info.run_id for _ in range(3)]

    def register(run_id, config, value):
        tracking.register(store, config, run_id, champion.source, value)
        return int(client.get_model_version_by_alias(name, "champion").version)

    split = config.data.model_copy(update={"validation": config.data.validation - 1})
    other = config.model_copy(update={"data": split})
    assert register(runs[0], other, 1.0) == int(champion.version)  # far better, on images of its own
    assert register(runs[1], config, 1.0) == len(versions) + 2
    assert register(runs[1], config, 1.0) == len(versions) + 2  # tried again: no other version
    assert len(client.search_model_versions(f"name = '{name}'")) == len(versions) + 2
    client.delete_model_version_tag(name, str(len(versions) + 2), "val_neg_elbo_nats")  # as one that was chosen by hand
    assert register(runs[2], config, 0.5) == len(versions) + 2
    for run_id in runs:
        client.delete_run(run_id)


def error(done):
    """The one line of a script that failed."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_bad_input_is_one_line_that_names_the_thing(project):
    unknown = project.script("reproduce", "params.yaml", "0" * 32, check=False)
    assert "no such run" in error(unknown)
    model = project.folder / "broken.safetensors"
    model.write_bytes(b"not a model")
    broken = project.script("generate", "params.yaml", "data", str(model), "out", check=False)
    assert "broken.safetensors" in error(broken)
    missing = project.script("generate", "params.yaml", "nowhere", "models/vae.safetensors", "out", check=False)
    assert "nowhere" in error(missing)
    project.params(data={"validation": 3})
    few = project.script("generate", "params.yaml", "data", "models/vae.safetensors", "out", check=False)
    assert "generate.interpolations" in error(few)
    assert not (project.folder / "out").exists()
    project.run("git", "checkout", "--quiet", "--", "params.yaml")
    model.unlink()
    shutil.rmtree(project.folder / "out", ignore_errors=True)


def test_the_quality_of_samples_is_measured_apart_from_the_pipeline(project):
    """For `dvc repro` nothing changes; the classifier is fitted once, whatever becomes of the VAE; and every run of a
    model has the quality of its samples."""
    before = project.runs()
    printed = project.dvc("repro", "quality/dvc.yaml").stdout
    assert "Stage 'train' didn't change" in printed  # what it needs comes first
    assert "Running stage 'quality/dvc.yaml:classifier'" in printed
    found = json.loads((project.folder / "metrics/quality.json").read_text())
    assert found["frechet_grey"] > found["frechet_grey_train"] > 0
    assert found["frechet_grey_stderr"] > 0
    assert sum(found["class_shares"]) == pytest.approx(1)
    assert (project.folder / "metrics/nearest.png").is_file()
    project.assert_quality(project.recorded())
    for pipeline in ("dvc.yaml", "quality/dvc.yaml"):
        assert "up to date" in project.dvc("repro", pipeline).stdout

    project.commit()
    project.dvc("exp", "run", "--pipeline", "quality/dvc.yaml", "--set-param", "train.seed=15")
    assert project.runs().keys() - before.keys() == {project.recorded()}
    trained = project.recorded()
    project.assert_whole(trained)
    changed = json.loads((project.folder / "metrics/quality.json").read_text())
    assert changed["classifier_sha256"] == found["classifier_sha256"]
    assert changed["frechet_grey"] != found["frechet_grey"]

    printed = project.dvc("exp", "run", "--pipeline", "quality/dvc.yaml", "--set-param", "evaluate.seed=7").stdout
    assert "Stage 'quality/dvc.yaml:quality' didn't change" in printed
    assert project.recorded() != trained
    for run_id in (trained, project.recorded()):
        project.assert_quality(run_id)

    project.dvc("exp", "run", "--set-param", "train.seed=16")
    for name in ("quality.json", "nearest.png"):
        assert not (project.folder / "metrics" / name).exists()  # or they would stand beside a model that is not theirs

    other = project.folder / "metrics/other.json"
    other.write_text(json.dumps(changed | {"model_sha256": "of another model"}))
    unknown = project.script("track_quality", "params.yaml", str(other), "plots/latent_kl.png", check=False)
    assert "other.json" in error(unknown)
    other.unlink()
