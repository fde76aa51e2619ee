"""Registered models: which version is the champion, and the files of the servable model."""

import json
from types import SimpleNamespace

import pytest

from tools import deps
from vae.tracking import registry


class Registry:
    """A registry in memory, with the methods of MlflowClient that `register` calls."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}  # aliases by name
        self.versions: list[SimpleNamespace] = []

    def search_registered_models(self, condition):
        return [name for name in self.models if condition == f"name = '{name}'"]

    def create_registered_model(self, name):
        assert name not in self.models
        self.models[name] = {}

    def get_registered_model(self, name):
        return SimpleNamespace(aliases=self.models[name])

    def search_model_versions(self, condition):
        return [item for item in self.versions if condition == f"name = '{item.name}' and run_id = '{item.run_id}'"]

    def create_model_version(self, name, source, run_id, tags, model_id):
        number = sum(item.name == name for item in self.versions) + 1
        made = SimpleNamespace(name=name, run_id=run_id, version=str(number), tags=tags, model_id=model_id)
        self.versions.append(made)
        return made

    def get_model_version(self, name, version):
        return next(item for item in self.versions if (item.name, item.version) == (name, version))

    def set_registered_model_alias(self, name, alias, version):
        self.models[name][alias] = version


@pytest.fixture
def client():
    """An empty registry."""
    return Registry()


@pytest.fixture
def add(client, small):
    """Registers the model of a run, and returns the version of the champion."""

    def register(run_id: str, value: float, **data: object) -> str:
        config = small(data={"name": "mnist", "binarization": "dynamic", "validation": 100} | data)
        registry.register(client, config, run_id, f"models:/model-of-{run_id}", value)
        return client.models[registry.registered_name(config)]["champion"]

    return register


def test_the_champion_has_the_lowest_value(add, capsys):
    assert add("a", 90.0) == "1"
    assert "it is the first champion" in capsys.readouterr().out
    assert add("b", 91.0) == "1"
    assert "not better than the champion, version 1 with 90.00" in capsys.readouterr().out
    assert add("c", 90.0) == "1"
    assert add("d", 89.5) == "4"
    assert "the new champion, better than version 1 with 90.00" in capsys.readouterr().out


def test_a_run_is_registered_once(add, client):
    """`track` may be cut short after it has registered the model."""
    assert add("a", 90.0) == add("a", 90.0) == "1"
    assert len(client.versions) == 1
    assert client.versions[0].model_id == "model-of-a"


def test_values_of_different_validation_splits_are_not_compared(add, capsys):
    assert add("a", 90.0) == "1"
    assert add("b", 10.0, validation=200) == "1"
    assert "not compared with the champion (version 1): it was scored on another data.validation" in (
        capsys.readouterr().out
    )


def test_a_champion_that_was_chosen_by_hand_stays(add, client, capsys):
    """It has no value to compare with."""
    assert add("a", 90.0) == "1"
    client.versions[0].tags = {}
    assert add("b", 10.0) == "1"
    assert "it was chosen by hand" in capsys.readouterr().out


def test_models_of_different_pixels_have_different_names(add, client):
    """Nats of different pixels do not compare, so each kind of pixels has a champion."""
    for data in ({}, {"name": "digits"}, {"binarization": "none"}, {"name": "digits", "binarization": "none"}):
        assert add(f"run {data}", 90.0, **data) == "1"
    assert [name.removeprefix("vae-") for name in client.models] == ["mnist", "digits", "mnist-grey", "digits-grey"]


def test_the_served_library_has_every_file_that_answers_need(root, monkeypatch):
    """The other files of the library are left out."""
    monkeypatch.chdir(root)
    files = [path.relative_to(root).as_posix() for path in registry.LIBRARY.rglob("*.py")]
    left_out = registry.NOT_SERVED(str(registry.LIBRARY), [path.name for path in registry.LIBRARY.iterdir()])
    served = {path for path in files if path.split("/")[2] not in left_out}
    assert {"src/vae/serving/requests.py", "src/vae/serving/inference.py"} <= served
    assert all(deps.library_files(root / path) <= served for path in served)
    assert {"tracking", "evaluation", "runtime"} <= left_out


def test_the_input_example_is_saved_without_running_the_model(tmp_path, monkeypatch):
    """Running it would import torch."""
    monkeypatch.setattr(registry.pyfunc, "save_model", lambda path, **options: given.update(options))
    saved, given, model = [], {}, SimpleNamespace(save=lambda path: saved.append(path))
    example = [{"task": "generate", "n": 1, "seed": 0}]
    registry.Servable.save_model(str(tmp_path), model, example, validate_serving_input=False, other=1)
    assert given == {"mlflow_model": model, "other": 1}
    info = model.saved_input_example_info
    assert json.loads((tmp_path / info["artifact_path"]).read_text()) == example
    assert json.loads((tmp_path / info["serving_input_path"]).read_text()) == {"inputs": example}
    assert saved == [str(tmp_path / "MLmodel")]


def test_the_code_of_a_model_has_no_secrets():
    """A model takes the code in src/vae along, to the server too."""
    names = ["model.py", "serving", ".env", "deploy.pem", "venv", "tracking", "__pycache__"]
    assert set(names) - registry.NOT_SERVED("src/vae", names) == {"model.py", "serving"}
