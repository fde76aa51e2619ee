"""The data of a run as MLflow knows it."""

import json
from types import SimpleNamespace

import mlflow.data
import pytest
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset as Entity

from vae import idx
from vae.tracking import datasets


@pytest.fixture
def state(tmp_path, small):
    """A state with 10 training and 3 test images."""
    for part, labels in (("train", [0, 1] * 5), ("t10k", [7, 7, 1])):
        content = idx.header("labels", len(labels)) + bytes(labels)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(content)
    return SimpleNamespace(data=tmp_path, data_sha256="0a", config=small(data={"name": "digits"}))


def test_training_validation_and_test_images_are_data_sets_of_their_own(state):
    made = datasets.inputs(state, 3)
    contexts = {name: [tag.value for tag in item.tags] for name, item in made.items()}
    assert contexts == {"training": ["training"], "validation": ["validation"], "test": ["test"]}
    parts = [item.dataset for item in made.values()]
    assert [part.name for part in parts] == ["digits-training", "digits-validation", "digits-test"]
    assert len({part.digest for part in parts}) == 3
    assert [json.loads(part.profile) for part in parts] == [
        {"num_rows": 7, "classes": {"0": 4, "1": 3}},
        {"num_rows": 3, "classes": {"0": 1, "1": 2}},
        {"num_rows": 3, "classes": {"1": 1, "7": 2}},
    ]
    schema = TensorDatasetSchema.from_dict(json.loads(parts[0].schema))
    (images,), (labels,) = schema.features.inputs, schema.targets.inputs
    assert (images.type.name, images.shape, labels.type.name, labels.shape) == ("uint8", (-1, 28, 28), "uint8", (-1,))


def test_the_digests_are_of_the_split_and_of_the_content(state):
    first = {item.dataset.digest for item in datasets.inputs(state, 3).values()}
    assert {item.dataset.digest for item in datasets.inputs(state, 3).values()} == first
    assert len(first & {item.dataset.digest for item in datasets.inputs(state, 2).values()}) == 1  # of the test images
    state.data_sha256 = "0b"
    assert not first & {item.dataset.digest for item in datasets.inputs(state, 3).values()}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "emnist-letters", "digits"])
def test_the_source_is_an_address_that_mlflow_can_follow(small, name, monkeypatch):
    monkeypatch.setenv("MNIST_MIRROR", "https://me:secret@example.org/mnist")
    kind, source = datasets.source_of(small(data={"name": name}).data)
    found = mlflow.data.get_source(Entity("n", "d", kind, json.dumps(source)))
    assert isinstance(found, HTTPDatasetSource)
    assert found.url.startswith("http")
    assert "secret" not in found.url


@pytest.mark.parametrize(("path", "shown"), [("images", "images"), ("/home/me/private/pictures", "pictures")])
def test_the_source_of_own_images_is_their_folder_without_the_path_to_it(small, path, shown):
    assert datasets.source_of(small(data={"name": "folder", "path": path}).data) == ("local", {"uri": shown})


def test_a_run_of_an_older_version_has_no_test_images():
    listed = [SimpleNamespace(dataset="whole", tags=[SimpleNamespace(value="train")])]
    for inputs in (None, SimpleNamespace(dataset_inputs=listed)):
        assert datasets.tested(SimpleNamespace(inputs=inputs)) is None
    listed.append(SimpleNamespace(dataset="third", tags=[SimpleNamespace(value="test")]))
    assert datasets.tested(SimpleNamespace(inputs=SimpleNamespace(dataset_inputs=listed))) == "third"
