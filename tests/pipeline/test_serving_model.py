"""The recorded model can be served, and it is the champion if it is the best."""

import base64
import csv
import io
import json
import math
import socket
from contextlib import ExitStack
from pathlib import Path
from random import Random

import mlflow
import numpy as np
import pytest
import requests
from PIL import Image

from tests.pipeline.project import CURVE, LIMIT_SECONDS, ROOT, TINY, server
from vae import params
from vae.tracking.registry import register, registered_name
from vae.tracking.store import Store

pytestmark = pytest.mark.pipeline


def test_model_is_served_and_outlives_bad_requests(project):
    """`mlflow models serve`: every task works, wrong requests get an error 4xx, and the model holds no pickle."""
    run = project.recorded()
    command = ["mlflow", "models", "serve", "-m", f"runs:/{run}/digits-conv-flow", "--env-manager", "local"]

    def post(*requests_):
        url = f"{address}/invocations"
        body = json.dumps({"inputs": list(requests_)})  # which writes NaN, as clients in Python do
        return requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=LIMIT_SECONDS)

    environment = project.at(project.uri).environment
    with server(command, "/ping", "/", environment) as address:  # the model must work outside of the repository
        first = post({"task": "generate", "n": 2, "seed": 3})
        assert first.status_code == 200
        images = first.json()["predictions"][0]["images"]
        assert [len(image) for image in images] == [784, 784]
        assert np.abs(np.subtract(*images)).max() > 0.01  # two samples differ
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
            ({"task": "generate", "n": 1, "format": "gif"}, "must be one of list, png"),
        ]:
            answer = post(wrong)
            assert 400 <= answer.status_code < 500, answer.text
            assert reason in answer.text
            assert len(answer.text) < 1200
        outlives_hostile_requests(address)
        assert post({"task": "generate", "n": 2, "seed": 3}).json() == first.json()  # it lives on, and is seeded
        assert post({"task": "generate", "n": 1}).json() != post({"task": "generate", "n": 1}).json()
        drawn = post({"task": "generate", "n": 2, "seed": 3, "format": "png"}).json()["predictions"][0]["png"]
        for text, image in zip(drawn, images, strict=True):
            grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
            np.testing.assert_allclose(grey.ravel() / 255, image, atol=0.5 / 255 + 1e-7)
        assert requests.get(f"{address}/version", timeout=LIMIT_SECONDS).text == mlflow.__version__
        command = code_of("README.md", "$ curl").replace("http://127.0.0.1:5001", address)
        digit = project.run("bash", "-c", command, no_proxy="127.0.0.1")  # docs/serving.md: as with --noproxy
        assert not digit.stderr
        assert Image.open(project.folder / "digit.png").size == (28, 28)
    model = project.client.get_run(run).outputs.model_outputs[0].model_id
    stored = Path(project.client.get_logged_model(model).artifact_location.removeprefix("file://"))
    assert (stored / "MLmodel").is_file()
    assert not [path for path in stored.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]


JSON = {"Content-Type": "application/json"}


def hostile_requests() -> list[tuple[bytes, dict[str, str]]]:
    """A thousand bodies with headers, from a seed: each kind of mistake, and valid requests with random damage."""
    pixels = [0.5] * 784
    tasks = [
        {"task": 5},
        {"task": "generate", "n": "x"},
        {"task": "generate", "n": 1.5},
        {"task": "generate", "n": 10**30},
        {"task": "generate", "n": 1, "__class__": "x"},
        {"task": "a" * 10**7},
        {"task": "encode", "images": [pixels, [1]]},
        {"task": "encode", "images": [["a"] * 784]},
        {"task": "encode", "images": [[None] * 784]},
        {"task": "encode", "images": [pixels] * 2000},
        {"task": "decode", "latents": [[math.nan, math.inf, 0, 0]]},
        {"task": "decode", "latents": [[[[1]]]]},
    ]
    inputs = [[task] for task in tasks] + [None, 7, "x", {}, [[[]]], [{"task": "generate", "n": 1}] * 5000]
    bodies = [json.dumps({"inputs": value}).encode() for value in inputs]
    bodies += [
        b"",
        b"7",
        b"[]",
        b"{}",
        b"x" * 10**7,
        bytes(100),
        b'{"inputs":"\xff"}',
        b'{"inputs":[{"task":"\\ud800"}]}',
    ]
    bodies += [b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}", b'{"inputs":' + b'{"a":' * 10_000]
    bodies += [
        b'{"inputs":[{"task":"generate","n":' + b"9" * 10_000 + b"}]}",
        b'{"dataframe_split":5}',
        b'{"instances":1}',
    ]
    bodies += [b'{"dataframe_records":[[1]]}', b'{"messages":[]}', b'{"input":5}', b'{"prompt":{}}']
    kinds = ["text/csv", "application/x-parquet", "application/json; charset=utf-16", ";;;", "image/png"]
    found = [(body, JSON) for body in bodies] + [(b"{}", {})] + [(b'"\xff,', {"Content-Type": kind}) for kind in kinds]
    valid, random = json.dumps({"inputs": [{"task": "decode", "latents": [[0.0, 1.0]]}]}).encode(), Random(0)
    while len(found) < 1000:
        damaged = bytearray(valid)
        for _ in range(random.randint(1, 5)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        found.append((bytes(damaged[: random.randint(1, len(damaged))]), JSON))
    return found


def outlives_hostile_requests(address: str) -> None:
    """Each of a thousand hostile requests gets a short error 4xx, while slow clients hold connections open."""
    host, port = address.removeprefix("http://").split(":")
    with ExitStack() as slow:
        for _ in range(50):
            client = slow.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
        session = slow.enter_context(requests.Session())
        for body, headers in hostile_requests():
            answer = session.post(f"{address}/invocations", data=body, headers=headers, timeout=LIMIT_SECONDS)
            assert 400 <= answer.status_code < 500, (body[:200], headers, answer.text[:500])
            assert len(answer.content) < 5000
        assert session.get(f"{address}/ping", timeout=LIMIT_SECONDS).status_code == 200


def code_of(page: str, word: str) -> str:
    """The commands of a page from the line that begins with this word to the end of their block."""
    text = (ROOT / page).read_text()
    return text[text.index(f"\n{word}") : text.index("```", text.index(f"\n{word}"))].strip().removeprefix("$ ")


def test_the_model_from_python_and_from_the_command_line(project, monkeypatch):
    """The lines of README.md, and MLflow's own commands, which start processes of their own."""
    monkeypatch.chdir(project.folder)
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    lines = code_of("README.md", "import mlflow")
    assert lines.count("models:/vae-mnist@champion") == 1
    exec(lines.replace("vae-mnist", "vae-digits"), {})
    (picture,) = shown
    assert picture.size == (280, 28)
    assert len(np.unique(np.asarray(picture))) > 10  # not one grey value
    uri, request = "models:/vae-digits@champion", {"inputs": [{"task": "generate", "n": 1, "seed": 0}]}
    Path("request.json").write_text(json.dumps(request))
    command = f"mlflow models predict -m {uri} --env-manager local -t json -i request.json".split()
    answered = project.run(*command, MLFLOW_TRACKING_URI=project.uri).stdout
    expected = mlflow.pyfunc.load_model(uri).predict(request["inputs"])
    assert json.loads(answered[answered.index("{") :])["predictions"] == expected
    mlflow.models.predict(uri, input_data=request["inputs"], env_manager="local", output_path="answer.json")
    assert json.loads(Path("answer.json").read_text())["predictions"] == expected


def test_a_mended_server_reaches_an_old_model(project):
    """`make serving` logs the model again. Both versions can be loaded in one process, and answer by their own code."""
    run, request = project.recorded(), [{"task": "generate", "n": 1, "seed": 0}]
    path = project.folder / "src/vae/serving/inference.py"
    path.write_text(path.read_text().replace("def generate", "imoprt", 1))
    assert "does not answer: invalid syntax" in project.error("tools/serving.py", "params.yaml", run)
    project.run("git", "checkout", "--quiet", "src")
    assert len(project.client.search_model_versions("name = 'vae-digits'")) == 1
    drawn = 'self.vae.sample(count, streams.stream(chosen, "served samples"))'
    assert drawn in path.read_text()
    path.write_text(path.read_text().replace(drawn, "torch.full((count, 784), 0.25)"))
    said = project.script("tools/serving.py", "params.yaml", run).stdout
    assert "version 2: the model of version 1, the present code; it is the champion now" in said
    mended, old = (mlflow.pyfunc.load_model(f"models:/vae-digits/{version}") for version in (2, 1))
    assert mended.predict(request)[0]["images"] == [[0.25] * 784]
    assert len(set(old.predict(request)[0]["images"][0])) > 10
    assert mlflow.pyfunc.load_model("models:/vae-digits@champion").predict(request) == mended.predict(request)
    first, second = (project.client.get_model_version("vae-digits", version) for version in "12")
    assert (first.tags, first.run_id) == (second.tags, second.run_id)
    assert project.client.get_run(run).data.tags["mlflow.note.content"] in second.description
    stored = [
        model.artifact_location
        for model in project.client.search_logged_models([project.client.get_run(run).info.experiment_id])
    ]
    assert len({Path(location).parent.parent for location in stored}) == 1
    assert "no such run" in project.error("tools/serving.py", "params.yaml", "0" * 32)


def test_the_champion_is_the_best_on_the_validation_split(project):
    client, name = project.client, "vae-digits"
    (first,) = client.search_model_versions(f"name = '{name}'")
    champion = client.get_model_version_by_alias(name, "champion")
    assert champion.version == first.version
    with (project.folder / "metrics/train.csv").open(newline="") as file:
        score = float(list(csv.DictReader(file))[-1][CURVE])
    assert float(first.tags[CURVE]) == score

    config = params.load(project.folder / "params.yaml")
    store = Store(project.folder, config.track.experiment)
    experiment = client.get_run(first.run_id).info.experiment_id
    runs = [client.create_run(experiment).info.run_id for _ in range(5)]

    def champion_after(run_id, split, value) -> int:
        """The version of the champion after a model with this value has been registered."""
        scored = {CURVE: repr(value), "validation_split": split}
        register(store, registered_name(params.leaves(config)), run_id, first.source, scored, run_id, "")
        return int(client.get_model_version_by_alias(name, "champion").version)

    split = first.tags["validation_split"]
    assert split.startswith(f"{project.json('metrics/validation.json')['validation_images']} images of ")
    assert champion_after(runs[0], split, score + 1) == 1  # worse
    assert champion_after(runs[1], split, score - 1) == 3  # better
    assert champion_after(runs[2], "12 images of 0123", 1.0) == 3  # far better, on images of its own
    assert champion_after(runs[3], split, 1.0) == 5
    assert champion_after(runs[3], split, 1.0) == 5  # tried again: no other version
    versions = client.search_model_versions(f"name = '{name}'")
    assert len(versions) == 5
    compared = [version for version in versions if version.tags["validation_split"] == split]
    assert min(compared, key=lambda version: float(version.tags[CURVE])).version == 5
    client.delete_model_version_tag(name, "5", CURVE)  # as one that was chosen by hand
    assert champion_after(runs[4], split, 0.5) == 5
