"""Registered models: which version is the champion."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from mlflow import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

from vae import params
from vae.tracking import registry


class Registry:
    """A registry in memory, with the methods of the store that `register` calls."""

    def __init__(self) -> None:
        self.lost: set[str] = set()  # addresses of models that cannot be loaded
        self.models: dict[str, dict[str, str]] = {}  # aliases by name
        self.versions: list[SimpleNamespace] = []
        self.now = 1_000_000_000  # milliseconds
        self.before_moving: list[Callable[[], None]] = []  # what another machine does before the alias moves
        self.links: dict[str, list[dict[str, str]]] = {}  # the versions by the id of the logged model
        self.weights: dict[str, str] = {}  # the hash of the model by the id of the run

    def search_registered_models(self, condition):
        return [name for name in self.models if condition == f"name = '{name}'"]

    def create_registered_model(self, name):
        assert name not in self.models
        self.models[name] = {}

    def get_registered_model(self, name):
        return SimpleNamespace(aliases=self.models[name])

    def search_model_versions(self, condition):
        texts = [(item, f"name = '{item.name}'") for item in self.versions]
        return [item for item, text in texts if condition in (text, f"{text} and run_id = '{item.run_id}'")]

    def create_model_version(self, name, source, run_id, tags, model_id, description):
        number = sum(item.name == name for item in self.versions) + 1
        made = SimpleNamespace(
            name=name,
            source=source,
            run_id=run_id,
            version=str(number),
            tags=tags,
            model_id=model_id,
            creation_timestamp=self.now,
            description=description,
        )
        self.versions.append(made)
        return made

    def find(self, tags):
        (sha,) = tags.values()
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run, own in self.weights.items() if own == sha]

    def set_logged_model_tags(self, model_id, tags):
        self.links[model_id] = json.loads(tags["mlflow.modelVersions"])

    def set_model_version_tag(self, name, version, key, value):
        self.get_model_version(name, version).tags[key] = value

    def get_model_version(self, name, version):
        return next(item for item in self.versions if (item.name, item.version) == (name, version))

    def set_registered_model_alias(self, name, alias, version):
        if self.before_moving:
            self.before_moving.pop()()
        self.models[name][alias] = version

    def delete_registered_model_alias(self, name, alias):
        del self.models[name][alias]

    def loads(self, uri):
        return uri not in self.lost


@pytest.fixture
def client():
    """An empty registry."""
    return Registry()


@pytest.fixture
def add(client, small):
    """Registers the model of a run, and returns the version of the champion."""

    def register(
        run_id: str, value: float, split: str = "100 images of 0a", weights: str = "", uri: str = "", **data: object
    ) -> str:
        name = registry.registered_name(params.leaves(small(data={"name": "mnist", "binarization": "dynamic"} | data)))
        scored = {registry.CHAMPION_METRIC: repr(value), registry.SPLIT: split}
        weights = client.weights[run_id] = weights or run_id
        registry.register(client, name, run_id, uri or f"models:/m-of-{run_id}", scored, weights, f"Note of {run_id}.")
        return client.models[name]["champion"]

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
    assert client.versions[0].model_id == "m-of-a"


@pytest.mark.parametrize("other", ["200 images of 0a", "100 images of 0b"])
def test_values_of_different_validation_splits_are_not_compared(add, capsys, other):
    """Another number of validation images, or another data set of the same name."""
    assert add("a", 90.0) == "1"
    assert add("b", 10.0, split=other) == "1"
    assert "not compared with the champion (version 1): it was scored on other validation images" in (
        capsys.readouterr().out
    )


def test_the_split_that_was_used_counts(add):
    """`data.validation` may ask for more images than there are."""
    assert add("a", 90.0, validation=5000) == "1"
    assert add("b", 10.0, validation=100) == "2"


def test_a_champion_without_a_split_stays(add, client, capsys):
    """Version 1.0.0 did not note it."""
    assert add("a", 90.0) == "1"
    del client.versions[0].tags[registry.SPLIT]
    assert add("b", 10.0) == "1"
    assert "other validation images" in capsys.readouterr().out


def test_a_champion_that_was_chosen_by_hand_stays(add, client, capsys):
    """It has no value to compare with."""
    assert add("a", 90.0) == "1"
    client.versions[0].tags = {}
    assert add("b", 10.0) == "1"
    assert "it was chosen by hand" in capsys.readouterr().out


def test_a_version_says_why_it_is_or_is_not_the_champion(add, client):
    for run, value in (("a", 90.0), ("b", 91.0), ("c", 89.0)):
        add(run, value)
    add("d", 1.0, split="200 images of 0a")
    assert [item.tags["verdict"] for item in client.versions] == [
        "it was the champion until version 3 with 89.00",
        "it is not better than the champion, version 1 with 90.00",
        "it is the new champion, better than version 1 with 90.00",
        "not compared with the champion (version 3): it was scored on other validation images",
    ]
    assert "Note of c." in client.versions[2].description
    assert "mlflow models serve -m models:/m-of-c" in client.versions[2].description
    assert client.links["m-of-c"] == [{"name": "vae-mnist", "version": "3"}]


def test_a_model_has_one_version_in_however_many_runs_it_is(add, client, capsys):
    """A change of `evaluate.*` alone gives another run of the same weights."""
    add("a", 90.0)
    assert add("b", 90.0, weights="a") == "1"
    assert "vae-mnist version 1 has these weights already" in capsys.readouterr().out
    assert [item.run_id for item in client.versions] == ["a"]
    assert registry.versions_of(client, "vae-mnist", "b", "a") == client.versions
    client.lost = {"models:/m-of-a"}
    assert add("b", 90.0, weights="a") == "2"


def test_a_champion_that_cannot_be_loaded_is_none(add, client, capsys):
    """The best of the others takes its place, before the new model is compared with it."""
    for run, value in (("a", 90.0), ("b", 91.0), ("c", 92.0)):
        assert add(run, value) == "1"
    client.lost = {"models:/m-of-a"}
    capsys.readouterr()
    assert add("d", 93.0) == "2"
    printed = capsys.readouterr().out
    assert "vae-mnist version 1, the champion, cannot be loaded; version 2 is the champion now" in printed
    assert "it is not better than the champion, version 2 with 91.00" in printed
    client.lost = {f"models:/m-of-{name}" for name in "abcd"}
    assert add("e", 99.0) == "5"
    assert "it is the champion" in capsys.readouterr().out


def test_a_lost_champion_gives_way_only_to_a_model_of_the_same_split(add, client):
    assert add("a", 90.0) == add("b", 95.0, split="200 images of 0a") == "1"
    client.lost = {"models:/m-of-a"}
    lost = registry.lost_champion(client, "vae-mnist")
    assert lost.version == "1"
    assert registry.replace_champion(client, lost) == "there is no other, so there is no champion now"
    assert client.models["vae-mnist"] == {}
    assert registry.lost_champion(client, "vae-mnist") is None


def test_a_champion_from_elsewhere_is_not_judged(add, client):
    """Its files are at an address that is not of a logged model."""
    add("a", 90.0)
    client.versions[0].source = "s3://bucket/model"
    client.lost = {"s3://bucket/model"}
    assert registry.lost_champion(client, "vae-mnist") is None


def test_a_model_that_was_logged_again_is_a_new_version(add, client):
    add("a", 90.0)
    client.lost = {"models:/m-of-a"}
    add("a", 90.0, uri="models:/m-again")
    assert [item.source for item in client.versions] == ["models:/m-of-a", "models:/m-again"]
    assert client.models["vae-mnist"] == {"champion": "2"}


@pytest.mark.parametrize(("first", "second"), [(85.0, 88.0), (88.0, 85.0), (85.0, 85.0)])
def test_two_machines_that_register_at_the_same_time_leave_the_best_as_champion(add, client, capsys, first, second):
    """The second machine registers its model and moves the alias after the first machine has compared."""
    add("present", 90.0)
    client.before_moving = [lambda: add("second", second)]
    champion = add("first", first)
    assert [item.run_id for item in client.versions] == ["present", "first", "second"]
    assert champion == ("3" if second < first else "2")
    printed = capsys.readouterr().out
    assert ("version 3 with 85.0, of the same time, is the champion" in printed) == (second < first)


def test_a_better_version_that_lost_its_title_by_hand_does_not_get_it_back(add, client):
    for run, value in (("a", 90.0), ("b", 80.0)):
        add(run, value)
    client.models["vae-mnist"]["champion"] = "1"
    client.now += registry.SAME_TIME + 1
    assert add("c", 85.0) == "3"


def test_a_name_that_another_machine_has_just_registered_is_used(add, client, monkeypatch):
    def create(name):
        client.models[name] = {}
        raise MlflowException("it exists", error_code=RESOURCE_ALREADY_EXISTS)

    monkeypatch.setattr(client, "create_registered_model", create)
    assert add("a", 90.0) == "1"


def test_models_of_different_pixels_have_different_names(add, client):
    """Nats of different pixels do not compare, so each kind of pixels has a champion."""
    for data in ({}, {"name": "digits"}, {"binarization": "none"}, {"name": "digits", "binarization": "none"}):
        assert add(f"run {data}", 90.0, **data) == "1"
    assert [name.removeprefix("vae-") for name in client.models] == ["mnist", "digits", "mnist-grey", "digits-grey"]


def test_a_model_that_is_registered_again_takes_the_place_of_its_older_version(add, client, capsys):
    add("a", 90.0)
    add("b", 91.0)
    name = client.versions[0].name
    client.models[name]["shown"] = "2"
    registry.register_again(client, client.versions[:1], "models:/mended")
    new = client.versions[-1]
    assert new.description.endswith("\nNote of a.")
    assert new.description.count("mlflow models serve -m models:/mended") == 1
    assert (new.version, new.run_id, new.tags, new.model_id) == ("3", "a", client.versions[0].tags, "mended")
    assert "`logvar`" in new.description
    assert client.models[name] == {"champion": "3", "shown": "2"}
    assert "version 3" in capsys.readouterr().out
    registry.register_again(client, client.versions[1:2], "models:/other")
    assert client.models[name] == {"champion": "3", "shown": "4"}
