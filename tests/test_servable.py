"""The servable model: its files, its requirements, and its code, which is a package of its own."""

import base64
import io
import json
import shutil
import sys
from types import SimpleNamespace

import mlflow
import mlflow.models.cli
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.models import Model
from PIL import Image

from tools import deps
from vae import model
from vae.errors import InputError
from vae.serving.inference import Inference
from vae.tracking import servable


@pytest.fixture
def weights(vae, tmp_path):
    """The file of a small model."""
    model.save(vae(), tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


@pytest.fixture
def library(root, tmp_path):
    """A copy of the library, in which a test can change the code."""
    return shutil.copytree(root / "src/vae", tmp_path / "library" / "vae", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def saved(weights, tmp_path, monkeypatch):
    """Saves the servable model with the code of a library, and returns its folder."""

    def save(library, name: str = "model") -> str:
        with monkeypatch.context() as patch:
            patch.setattr(servable, "LIBRARY", library)
            with servable.packed(weights) as options:
                servable.save(tmp_path / name, Model(), **options)
        return str(tmp_path / name)

    monkeypatch.setattr(sys, "path", list(sys.path))
    return save


def test_two_versions_in_one_process_answer_by_their_own_code(saved, library):
    """Also if this library, which has the same name as theirs, is imported already."""
    request = [{"task": "generate", "n": 1, "seed": 0}]
    assert Inference.__module__ in sys.modules
    folders = [saved(library, "first")]
    inference = library / "serving/inference.py"
    sampled = 'self.vae.sample(count, streams.stream(chosen, "served samples"))'
    assert sampled in inference.read_text()
    inference.write_text(inference.read_text().replace(sampled, "torch.full((1, 784), -7.0)"))
    folders.append(saved(library, "second"))
    inference.unlink()  # a model needs no file outside of its folder
    first, second = map(mlflow.pyfunc.load_model, folders)
    assert second.predict(request)[0]["images"] == [[-7.0] * 784]
    assert min(first.predict(request)[0]["images"][0]) >= 0
    assert "-7" not in (servable.LIBRARY / "serving/inference.py").read_text()


def test_the_package_is_named_after_its_code(library, tmp_path):
    """The same code has the same name, and no import leads to a package of another name."""
    one, other = (servable.private_library(library, tmp_path / name) for name in ("one", "other"))
    assert one.name == other.name != "vae"
    assert one.name.isidentifier()
    for path in one.rglob("*.py"):
        assert not {name for name in deps.imported(path) if name.partition(".")[0] == "vae"}, path
    (library / "errors.py").write_text("# other code\n" + (library / "errors.py").read_text())
    assert servable.private_library(library, tmp_path / "changed").name != one.name


def test_the_package_has_every_file_that_answers_need(root, tmp_path, monkeypatch):
    """The other files of the library are left out."""
    monkeypatch.chdir(root)
    package = servable.private_library(servable.LIBRARY, tmp_path)
    served = {f"src/vae/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert {"src/vae/serving/requests.py", "src/vae/serving/inference.py"} <= served
    assert all(deps.library_files(root / path) <= served for path in served)
    assert not {path for path in served if path.split("/")[2] in ("tracking", "evaluation", "runtime")}


def test_a_local_build_is_pinned_as_the_published_version(monkeypatch):
    """2.14.1+cpu is in no index of packages but its own, so an environment with it could not be installed."""
    monkeypatch.setattr(servable, "version", lambda name: "2.14.1+cpu" if name == "torch" else "1.0")
    assert "torch==2.14.1" in servable.requirements()


def test_the_pins_are_those_of_the_lock_file(root):
    """So each of them is a version that was published, also if this environment has another build of torch."""
    assert set(servable.requirements()) <= set((root / "requirements.lock").read_text().splitlines())


def test_the_input_example_is_saved_without_running_the_model(tmp_path, monkeypatch):
    """Running it would import torch."""
    monkeypatch.setattr(servable.pyfunc, "save_model", lambda path, **options: given.update(options))
    files, given, made = [], {}, SimpleNamespace(save=lambda path: files.append(path))
    example = [{"task": "generate", "n": 1, "seed": 0}]
    servable.save(tmp_path, made, example, other=1)
    assert given == {"mlflow_model": made, "other": 1}
    info = made.saved_input_example_info
    assert json.loads((tmp_path / info["artifact_path"]).read_text()) == example
    assert json.loads((tmp_path / info["serving_input_path"]).read_text()) == {"inputs": example}
    assert files == [str(tmp_path / "MLmodel")]


def test_the_model_takes_arrays(saved):
    """The input of MLflow's own checks: arrays of one and two axes more, and numbers of numpy."""
    loaded = mlflow.pyfunc.load_model(saved(servable.LIBRARY))
    images = np.random.default_rng(0).random((2, 784)).astype(np.float32)
    plain = loaded.predict([{"task": "encode", "images": images.tolist()}])
    for form in (images, images.reshape(2, 28, 28), list(images)):
        assert loaded.predict([{"task": "encode", "images": form}]) == plain
    decoded = loaded.predict([{"task": "decode", "latents": np.array(plain[0]["mu"])}])
    assert np.shape(decoded[0]["images"]) == (2, 784)
    drawn = loaded.predict([{"task": "generate", "n": np.int64(2), "seed": np.int64(1)}])
    assert drawn == loaded.predict([{"task": "generate", "n": 2, "seed": 1}])


def test_the_signature_names_every_field_of_requests_and_answers(saved):
    signature = mlflow.pyfunc.load_model(saved(servable.LIBRARY)).metadata.signature
    (given,), (answered,) = (json.loads(schema.to_json()) for schema in (signature.inputs, signature.outputs))
    assert set(given["properties"]) == {"task", "n", "seed", "format", "images", "latents"}
    assert {name for name, field in given["properties"].items() if field["required"]} == {"task"}
    assert set(answered["properties"]) == {"images", "png", "mu", "logvar"}
    assert all(f"`{name}`" in servable.DESCRIPTION for name in answered["properties"])


def test_a_png_shows_the_digit(saved):
    loaded = mlflow.pyfunc.load_model(saved(servable.LIBRARY))
    request = {"task": "generate", "n": 2, "seed": 5}
    images = loaded.predict([request])[0]["images"]
    answer = loaded.predict([request | {"format": "png"}])[0]
    assert list(answer) == ["png"]
    for grey, text in zip(images, answer["png"], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (picture.format, picture.size, picture.mode) == ("PNG", (28, 28), "L")
        np.testing.assert_allclose(np.asarray(picture).ravel() / 255, grey, atol=0.5 / 255 + 1e-7)


@pytest.mark.parametrize("file", ["serving/requests.py", "serving/inference.py"])
def test_code_that_cannot_answer_is_one_clear_error(weights, library, monkeypatch, file):
    servable.check(weights)
    (library / file).write_text((library / file).read_text().replace("import", "imoprt", 1))
    monkeypatch.setattr(servable, "LIBRARY", library)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match=r"vae/serving: the present code does not answer: .*invalid syntax") as caught:
        servable.check(weights)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_a_link_into_the_cache_of_dvc_is_saved(weights, tmp_path):
    """DVC makes such links with `cache.type symlink`."""
    link = tmp_path / "models/vae.safetensors"
    link.parent.mkdir()
    link.symlink_to(weights)
    servable.check(link)


def test_the_code_of_a_model_has_no_secrets_and_no_environment(tmp_path):
    """A model takes the code in src/vae along, to the server too."""
    for name in ("model.py", "serving/requests.py", "my_secrets.py", "venv/lib.py", "tracking/store.py", ".env"):
        (tmp_path / "vae" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "vae" / name).touch()
    package = servable.private_library(tmp_path / "vae", tmp_path / "copy")
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert files == {"model.py", "serving/requests.py"}


@pytest.mark.parametrize("manager", ["virtualenv", "uv"])
def test_mlflow_makes_a_container_file_for_the_model(saved, library, tmp_path, root, manager):
    """It copies the model with its pinned requirements, each of which is published in that version."""
    model, folder = saved(library), tmp_path / manager
    command = ["generate-dockerfile", "-m", model, "-d", str(folder), "--env-manager", manager]
    done = CliRunner().invoke(mlflow.models.cli.commands, command)
    assert done.exit_code == 0, done.output
    assert "COPY model_dir/model /opt/ml/model" in (folder / "Dockerfile").read_text()
    (copied,) = folder.glob("model_dir/model/requirements.txt")
    pins = set(copied.read_text().split())
    assert "torch" in {pin.partition("==")[0] for pin in pins}
    assert pins <= set((root / "requirements.lock").read_text().splitlines())
