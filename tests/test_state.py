"""The key and the hashes of a state."""

from vae.runtime import files

import csv
import dataclasses
import hashlib
import json
import random
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pipeline import track, track_quality
from vae.errors import InputError
from vae.params import load
from vae.tracking import state as states
from vae.tracking.state import State, curve_point, dependencies, read_curves

METRICS = ("train.csv", "validation.json", "evaluation.json")


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
    places = ("params.yaml", "data", "models/vae", *(f"metrics/{name}" for name in METRICS), "plots", "samples")
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


def test_a_damaged_lock_file_is_one_clear_error(tmp_path):
    path = tmp_path / "dvc.lock"
    for content in (b"stages: [", b"stages: 1", b"", b"[]", b"\xff\xfe", b"stages: {a: {deps: [1]}}"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"dvc\.lock is no (lock file of DVC|text); `git restore"):
            dependencies(path)


@pytest.fixture
def whole(tmp_path, root):
    """A state with everything that a state must have."""
    shutil.copy(root / "params.yaml", tmp_path / "params.yaml")
    config = load(root / "params.yaml")
    for name in ("data", "models", "metrics", "plots", "samples"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/images").write_bytes(b"images")
    described = config.model.model_dump() | {"trained": {"device": "cpu"}}
    save_file(
        {"prior.w": np.ones(9, np.float32)}, tmp_path / "models/vae.safetensors", {"model": json.dumps(described)}
    )
    epochs = range(1, config.train.epochs + config.train.prior_epochs + 1)
    columns = ("epoch", "train_neg_elbo_nats", "val_neg_elbo_nats", "rate_nats", "distortion_nats", "lr")
    with (tmp_path / "metrics/train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *((epoch, 100, 90.5, 20, 80, 0.1) for epoch in epochs)])
    evaluation = dict.fromkeys(states.OF_EVALUATION, 3) | {"importance_samples": config.evaluate.importance_samples}
    for name, values in (
        ("validation", {"val_neg_elbo_nats": 90.5, "validation_images": 9}),
        ("evaluation", evaluation),
    ):
        (tmp_path / f"metrics/{name}.json").write_text(json.dumps(values))
    for name in (*(f"plots/{name}" for name in states.PLOTS), *(f"samples/{name}" for name in states.SAMPLES[:3])):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / name)
    save_file({"z": np.ones(9, np.float32)}, tmp_path / "samples/samples.safetensors")
    metrics = (tmp_path / "metrics" / name for name in METRICS)
    names = ("params.yaml", "data", "models/vae.safetensors")
    return State(*(tmp_path / name for name in names), *metrics, tmp_path / "plots", tmp_path / "samples")


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another one."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


PICTURES = (*(f"plots/{name}" for name in states.PLOTS), *(f"samples/{name}" for name in states.SAMPLES))
FILES = ("models/vae.safetensors", *(f"metrics/{name}" for name in METRICS), *PICTURES)


def refusal(state: State) -> str:
    """The one line with which a state is refused."""
    with pytest.raises((InputError, IsADirectoryError)) as caught:
        dataclasses.replace(state).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_state_is_accepted(whole):
    whole.check()


@pytest.mark.parametrize("name", FILES)
def test_a_state_with_a_damaged_file_is_refused_by_its_name(whole, name):
    path = whole.params.parent / name
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], random.Random(0).randbytes(99)):
        path.write_bytes(damaged)
        assert f"{path} " in refusal(whole)
    if path.suffix == ".png":
        path.write_bytes(flipped(content))
        assert f"{path} is missing or damaged" in refusal(whole)
    path.unlink()
    assert f"{path} is missing" in refusal(whole)
    path.mkdir()
    assert str(path) in refusal(whole)


@pytest.mark.parametrize("name", ["data", "plots", "samples"])
def test_a_state_without_one_of_its_folders_is_refused(whole, name):
    shutil.rmtree(whole.params.parent / name)
    assert f"{whole.params.parent / name}" in refusal(whole)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("train.csv", "\n2,", "\n7,"),
        ("train.csv", "\n2,100", "\n2,nan"),
        ("train.csv", "\n2,100", "\n2,1e999"),
        ("train.csv", "\n2,100", "\n2"),
        ("train.csv", "\n2,", "\n2,1,"),
        ("train.csv", "\n2,", "\n2.5,"),
        ("train.csv", "epoch", "epochs"),
        ("train.csv", "rate_nats", "other"),
        ("validation.json", "90.5", "90.25"),
        ("validation.json", "90.5", "NaN"),
        ("validation.json", "9}", "9.5}"),
        ("evaluation.json", '"importance_samples": 10', '"importance_samples": 11'),
        ("evaluation.json", '"nll_iw_nats": 3', '"nll_iw_nats": NaN'),
        ("evaluation.json", '"nll_iw_nats": 3', '"nll_iw_nats": -1e999'),
        ("evaluation.json", '"nll_iw_nats": 3', f'"nll_iw_nats": 1{400 * "0"}'),
        ("evaluation.json", '"nll_iw_nats": 3', '"nll_iw_nats": "3"'),
        ("evaluation.json", '"nll_iw_nats": 3', '"nll_iw_nats": true'),
        ("evaluation.json", '"nll_iw_nats"', '"other"'),
    ],
)
def test_a_wrong_figure_is_refused(whole, name, old, new):
    path = whole.params.parent / "metrics" / name
    text = path.read_bytes().decode().replace("\r", "")
    assert old in text
    path.write_text(text.replace(old, new))
    assert f"{path} " in refusal(whole)


def test_curves_that_were_cut_in_the_last_number_are_refused(whole):
    """What is left of it is a number too."""
    path = whole.params.parent / "metrics/train.csv"
    whole_text = path.read_bytes()
    path.write_bytes(whole_text[:-2])
    assert f"{path} was cut short" in refusal(whole)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '"text"', 99999 * "["])
@pytest.mark.parametrize("name", METRICS[1:])
def test_json_of_another_kind_is_refused(whole, name, text):
    path = whole.params.parent / "metrics" / name
    path.write_text(text)
    assert f"{path} " in refusal(whole)


@pytest.mark.parametrize("metadata", [None, {}, {"model": "["}, {"model": "1"}, {"model": '{"latent_dim": 2}'}])
def test_a_model_of_other_params_is_refused(whole, metadata):
    save_file({"w": np.ones(9, np.float32)}, whole.model, metadata)
    assert f"{whole.model} is a model of other params than" in refusal(whole)


def test_weights_that_are_not_finite_are_refused(whole):
    described = json.dumps(whole.config.model.model_dump())
    save_file({"w": np.array([1, np.nan], np.float32)}, whole.model, {"model": described})
    assert "w has a value that is not finite" in refusal(whole)


def test_no_run_is_opened_for_a_state_that_is_not_whole(whole, monkeypatch):
    """`track` asks before it looks at the store."""
    opened = []
    monkeypatch.setattr(track, "record", lambda *arguments: opened.append(arguments) or "r")
    folder = whole.params.parent
    files = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole) if field.name != "params"}
    more = {name: folder / f"metrics/{name}" for name in ("run", "quality", "nearest")}
    monkeypatch.setattr(track.repository, "main_repository", lambda: folder)
    track.main(whole.params, **files, **more)
    assert len(opened) == 1
    whole.evaluation.write_text("{}")
    with pytest.raises(InputError, match=r"evaluation\.json has no neg_elbo_nats"):
        track.main(whole.params, **files, **more)
    assert len(opened) == 1


def test_the_epochs_of_a_prior_are_needed_if_it_has_weights(whole):
    """A prior without weights has no epochs of its own, whatever its name is."""
    params, rows = load(whole.params), whole.curves.read_text().splitlines(keepends=True)
    whole.curves.write_text("".join(rows[: -params.train.prior_epochs]))
    assert f"lacks an epoch of 1 to {len(rows) - 1}, " in refusal(whole)
    described = {"model": json.dumps(params.model.model_dump())}
    save_file({"decode.w": np.ones(9, np.float32)}, whole.model, described)
    dataclasses.replace(whole).check()
    whole.curves.write_text("".join(rows))
    assert f"lacks an epoch of 1 to {params.train.epochs}, " in refusal(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_sha256": 1}', '{"frechet": NaN}'])
def test_a_damaged_quality_is_one_line_and_is_not_deleted(whole, tmp_path, text):
    quality, nearest = tmp_path / "metrics/quality.json", tmp_path / "metrics/nearest.png"
    quality.write_text(text)
    shutil.copy(whole.plots / states.PLOTS[0], nearest)
    with pytest.raises(InputError, match=r"quality\.json (is|has) .*`dvc repro quality/dvc\.yaml`"):
        track_quality.main(whole.params, quality, nearest)
    if not text.endswith("}") or "NaN" in text:
        with pytest.raises(InputError, match=r"quality\.json is .*`dvc repro quality/dvc\.yaml`"):
            track.empty_if_stale(whole, quality, nearest)
    assert quality.exists()
    nearest.write_bytes(b"")
    with pytest.raises(InputError, match=r"nearest\.png is missing or damaged"):
        track_quality.main(whole.params, quality, nearest)
