"""The key and the hashes of a state."""

from vae.runtime import files

import dataclasses
import hashlib
import shutil

import pytest

from vae.errors import InputError
from vae.tracking import state as states
from vae.tracking.state import State, curve_point, dependencies, read_curves


@pytest.fixture
def state(tmp_path, root):
    """A state whose files contain their names."""
    shutil.copy(root / "params.yaml", tmp_path / "params.yaml")
    for name in (
        "data/images",
        "models/vae",
        "metrics/train.csv",
        "metrics/validation.json",
        "metrics/evaluation.json",
        "plots/a.png",
        "samples/b.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    metrics = ("metrics/train.csv", "metrics/validation.json", "metrics/evaluation.json")
    places = ("params.yaml", "data", "models/vae", *metrics, "plots", "samples")
    return State(*(tmp_path / place for place in places))


def again(state: State) -> str:
    """The key of the same files, read again."""
    return dataclasses.replace(state).key


def test_the_key_changes_with_every_file_and_param_and_with_nothing_else(state):
    keys = {again(state)}
    assert again(state) in keys
    for path in (
        state.model,
        state.curves,
        state.validation,
        state.evaluation,
        state.plots / "a.png",
        state.data / "images",
    ):
        path.write_text("changed")
        assert again(state) not in keys
        keys.add(again(state))
    text = state.params.read_text()
    state.params.write_text(f"# a comment\n{text}")
    assert again(state) in keys
    state.params.write_text(text.replace("experiment: vae", "experiment: other"))
    assert again(state) in keys  # the place of its record is no part of a state
    assert "step_size: 0.3" in text
    state.params.write_text(text.replace("step_size: 0.3", "step_size: 0.4"))
    assert again(state) in keys  # no stage reads this key
    for own in ("searched: 1000", "shift: 1"):  # of quality/dvc.yaml, which writes none of these files
        assert own in text
        state.params.write_text(text.replace(own, f"{own}0"))
        assert again(state) in keys
    state.params.write_text(text.replace("seed: 0", "seed: 1"))
    assert again(state) not in keys


def test_every_file_is_hashed_once(state, monkeypatch):
    hashed = []
    monkeypatch.setattr(states, "sha256", lambda path: hashed.append(path) or files.sha256(path))
    for _ in range(2):
        assert all((state.key, state.model_sha256, state.data_sha256, state.output_hashes()))
    assert sorted(hashed) == sorted(set(hashed))
    assert len(hashed) == 7


def test_hashes_of_model_data_and_outputs(state):
    assert state.model_sha256 == hashlib.sha256(b"models/vae").hexdigest()
    images = hashlib.sha256(b"data/images").hexdigest()
    assert state.data_sha256 == hashlib.sha256(f"images {images}\n".encode()).hexdigest()
    outputs = state.output_hashes()
    assert set(outputs) == {str(path) for path in state.hashes} - {str(state.data / "images")}
    assert outputs[str(state.model)] == state.model_sha256


def test_curves_are_the_rows_of_the_file(tmp_path):
    (tmp_path / "train.csv").write_text("epoch,rate_nats,lr\n1,20.5,0.1\n2,21,0.05\n")
    assert read_curves(tmp_path / "train.csv") == [
        (1, {"train_rate_nats": 20.5, "lr": 0.1}),
        (2, {"train_rate_nats": 21.0, "lr": 0.05}),
    ]


def test_the_rate_of_training_has_another_name_than_the_rate_of_the_test_images():
    epoch, values = curve_point({"epoch": "2", "rate_nats": "20.5", "lr": "0.1"})
    assert (epoch, values) == (2, {"train_rate_nats": 20.5, "lr": 0.1})


def test_curves_with_conflict_marks_are_one_clear_error(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("epoch,lr\n<<<<<<< HEAD\n1,0.1\n=======\n1,0.2\n>>>>>>> other\n")
    with pytest.raises(InputError, match=r"train\.csv has conflict marks"):
        read_curves(path)


def test_the_dependencies_of_all_stages(root, tmp_path):
    found = dependencies(root / "dvc.lock")
    assert {"data", "pipeline/train.py", "src/vae/model.py", "metrics/evaluation.json"} <= found
    assert "metrics/mlflow.json" not in found
    assert dependencies(tmp_path / "none") == set()
