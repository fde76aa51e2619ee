"""A team's MLflow server: on PostgreSQL, for its users only, with files that pass through it."""

import copy
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from tests.pipeline.postgres import ENCODED, PASSWORD
from tests.pipeline.project import CURVE, LIMIT_SECONDS, ROOT, Project, clean_environment, server
from vae import params
from vae.tracking import registry
from vae.tracking.store import CHAMPION_METRIC, Store, Tag

pytestmark = [pytest.mark.pipeline, pytest.mark.scale]

ADMIN = ("admin", "a long pass/word")
USERS = {"ann": "the password of ann", "ben": "the password of ben"}
RESULT = ("params.yaml", "metrics/mlflow.json")
SEARCH = ("tools/search.py", "params.yaml", "search.yaml", "metrics/validation.json", "")
# The helper of the tests adds `--port` to a command. MLflow reads a variable too.
START = f'MLFLOW_PORT="$2" exec python "{ROOT}/tools/server.py" --auth'


@pytest.fixture(scope="module")
def team(database, tmp_path_factory) -> Iterator[str]:
    """The address of a server with two workers, on which only `ADMIN` and `USERS` may do anything."""
    pytest.importorskip("flask_wtf", reason="flask-wtf is missing: `make test-scale` installs requirements-scale.lock")
    folder = tmp_path_factory.mktemp("server")
    settings = {
        "PYTHONPATH": str(ROOT / "src"),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "files"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_WORKERS": "2",
    }
    with server(["bash", "-c", START, "server"], "/health", folder, clean_environment() | settings) as address:
        for name, password in USERS.items():
            user = {"username": name, "password": password}
            url = f"{address}/api/2.0/mlflow/users/create"
            assert requests.post(url, json=user, auth=ADMIN, timeout=LIMIT_SECONDS).ok
        yield address


def clone(project: Project, folder: Path, user: str, address: str) -> Project:
    """A clone of the project in which a user of the server works. It shares the cache of the project."""
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    other = copy.copy(project)
    other.folder, other.uri = folder, address
    login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": USERS[user]}
    other.environment = project.environment | {"MLFLOW_TRACKING_URI": address} | login
    other.run("git", "config", "user.email", f"{user}@example.org")
    other.run("git", "config", "user.name", user)
    other.dvc("cache", "dir", "--local", str(project.folder / ".dvc/cache"))
    other.dvc("checkout")
    return other


def test_two_clones_record_compare_register_and_reproduce(project, team, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    clones = {name: clone(project, tmp_path / name, name, team) for name in USERS}
    started = [
        other.start("dvc", "exp", "run", "--name", f"of-{name}", "--set-param", f"train.seed={seed}")
        for seed, (name, other) in enumerate(clones.items(), start=1)
    ]
    for experiment in started:
        experiment.ended()

    runs = {name: other.recorded() for name, other in clones.items()}
    ann, ben = clones["ann"], clones["ben"]
    assert ben.runs().keys() == set(runs.values())
    for name, other in clones.items():
        run = other.assert_whole(runs[name])
        assert run.data.tags["dvc.experiment"] == f"of-{name}"
        assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert run.info.user_id
    values = {run_id: run.data.metrics[CURVE] for run_id, run in ben.runs().items()}
    assert len(set(values.values())) == 2
    best = min(values, key=values.get)
    champion = ben.client.get_model_version_by_alias("vae-digits", registry.CHAMPION)
    assert champion.run_id == best
    assert len(ben.client.search_model_versions("name = 'vae-digits'")) == 2

    mlflow.set_tracking_uri(team)
    model = mlflow.pyfunc.load_model("models:/vae-digits@champion")
    assert model.predict([{"task": "generate", "n": 1, "seed": 0}])[0]["images"]

    done = ben.script("tools/reproduce.py", "params.yaml", runs["ann"])
    hashes = json.loads(ann.text(runs["ann"], "hashes.json"))
    assert done.stdout.count("the same, bit for bit") == len(hashes)
    assert ben.runs().keys() == set(runs.values())

    opened = ann.client.create_run(ann.client.get_experiment_by_name("vae").experiment_id).info.run_id
    deletion = {"json": {"run_id": opened}, "timeout": LIMIT_SECONDS}
    url = f"{team}/api/2.0/mlflow/runs/delete"
    assert requests.post(url, **deletion).status_code == 401
    assert requests.post(url, auth=("ben", USERS["ben"]), **deletion).ok  # as `track` does

    for value in (1.0, -1.0):  # either of the two may be the better one
        race(ann, {run_id: value * score for run_id, score in values.items()}, f"race{value}", monkeypatch)


def race(project: Project, values: dict[str, float], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines register the models of two runs. Each has compared its own before the other moves the alias."""
    experiment = params.load(project.folder / "params.yaml").track.experiment
    compared, failures = threading.Barrier(2, timeout=LIMIT_SECONDS), []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.uri)

    def machine(run_id: str, value: float) -> None:
        store = Store(project.folder, experiment)
        move, moves = store.set_registered_model_alias, iter([compared.wait])

        def moved(*arguments: object) -> None:
            next(moves, lambda: None)()
            move(*arguments)

        store.set_registered_model_alias = moved
        try:
            run = store.get_run(run_id)
            scored = {CHAMPION_METRIC: repr(value), registry.SPLIT: "split"}
            registry.register(store, name, run_id, store.model_of(run), scored, run.data.tags[Tag.MODEL], "")
        except BaseException as error:
            compared.abort()
            failures.append(error)
            raise

    threads = [threading.Thread(target=partial(machine, *item)) for item in values.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    client = MlflowClient(project.uri)
    assert client.get_model_version_by_alias(name, registry.CHAMPION).run_id == min(values, key=values.get)
    assert len(client.search_model_versions(f"name = '{name}'")) == 2


@pytest.mark.parametrize(
    "page", ["", "api/2.0/mlflow/experiments/get?experiment_id=0", "api/2.0/mlflow-artifacts/artifacts"]
)
def test_without_credentials_there_is_no_entry(team, page):
    for auth in (None, ("ann", "wrong"), ("nobody", "the password of ann")):
        assert requests.get(f"{team}/{page}", auth=auth, timeout=LIMIT_SECONDS).status_code == 401
    assert requests.get(f"{team}/{page}", auth=("ann", USERS["ann"]), timeout=LIMIT_SECONDS).ok


def test_a_wrong_server_password_or_database_is_one_line_without_the_password(project, team, database):
    secret = "the-wrong-secret"
    wrong = project.at(team)
    wrong.environment |= {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": secret}
    for uri, reason in {
        team: "the server wants a user and a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        team.replace("://", f"://ann:{secret}@"): "the server wants a user and a password",
        "http://127.0.0.1:9": "check MLFLOW_TRACKING_URI",
        database.replace(ENCODED, secret): 'password authentication failed for user "team"; check MLFLOW_TRACKING_URI',
        database.replace("/postgres", "/none"): 'database "none" does not exist; check MLFLOW_TRACKING_URI',
        database.replace("127.0.0.1", "host.invalid"): "check MLFLOW_TRACKING_URI",
        database.replace(ENCODED, PASSWORD): "write each @ but the one before the host as %40",
    }.items():
        wrong.environment["MLFLOW_TRACKING_URI"] = uri
        line = wrong.error("tools/sync.py", *RESULT, "")
        assert reason in line
        assert not any(part in line for part in (secret, ENCODED, PASSWORD, PASSWORD.partition("@")[2]))
    wrong.environment |= {"MLFLOW_TRACKING_URI": project.uri, "VAE_STUDY": database.replace(ENCODED, secret)}
    line = wrong.error(*SEARCH)
    assert line.startswith("error: VAE_STUDY postgresql://127.0.0.1:")
    assert line.endswith('password authentication failed for user "team"; check VAE_STUDY\n')


def test_a_server_that_cannot_start_says_why_in_one_line(project, database):
    def refused(uri: str, *arguments: str) -> str:
        project.environment = project.environment | {"MLFLOW_BACKEND_STORE_URI": uri}
        return project.error("tools/server.py", *arguments)

    for uri in ("", "http://127.0.0.1:5000"):
        assert "MLFLOW_BACKEND_STORE_URI must name a database" in refused(uri)
    line = refused(database.replace(ENCODED, "wrong-secret"))
    assert 'password authentication failed for user "team"; check MLFLOW_BACKEND_STORE_URI' in line
    assert "secret" not in line
    assert "needs MLFLOW_AUTH_ADMIN_PASSWORD" in refused(database, "--auth")
