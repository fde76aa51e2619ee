"""The rows of metrics/leaderboard.csv, and the script that adds them."""

from vae.runtime import files

import json
import subprocess

import pytest

from tools import leaderboard as script
from vae import model, params
from vae.errors import InputError
from vae.evaluation import leaderboard, readme
from vae.params import load


def test_rows_are_read_and_replaced(row, tmp_path):
    rows = [row("a", 0), row("a", 1)]
    lines = ([each[name] for name in leaderboard.COLUMNS] for each in rows)
    files.write_csv(tmp_path / "board.csv", leaderboard.COLUMNS, lines)
    assert leaderboard.read(tmp_path / "board.csv") == rows
    assert leaderboard.read(tmp_path / "none.csv") == []
    better = row("a", 0, nll_iw_nats=80.0)
    assert leaderboard.put(rows, better) == [better, rows[1]]


@pytest.mark.parametrize("changes", [{"test_images": 360}, {"binarization_sha256": "1"}])
def test_rows_of_other_images_or_pixels_are_refused(row, changes):
    with pytest.raises(InputError, match=rf"{next(iter(changes))} .* and the rows of the leaderboard have (10000|0),"):
        leaderboard.put([row("a")], row("b", **changes))
    assert len(leaderboard.put([], row("b", **changes))) == 1


@pytest.mark.parametrize(
    ("section", "change", "key"),
    [("data", {"name": "kmnist"}, "data_name"), ("evaluate", {"seed": 3}, "evaluate_seed")],
)
def test_rows_of_another_data_set_or_seed_are_refused(row, small, evaluation, quality, section, change, key):
    other = leaderboard.row("b", small(**{section: change}), 1, 1.0, evaluation, quality)
    with pytest.raises(InputError, match=f"the evaluation has {key} {next(iter(change.values()))}"):
        leaderboard.put([row("a")], other)


def test_a_model_of_grey_values_is_scored_on_the_same_pixels(row, small, evaluation, quality):
    measured = evaluation | {"binarization": "none"}
    grey = leaderboard.row("seed", small(data={"binarization": "none"}), 1, 1.0, measured, quality)
    assert leaderboard.put([row("minute")], grey) == [row("minute"), grey]


class Stored:
    """A store with the run `r` of the model, and the text of two of its artifacts: params.yaml and hashes.json."""

    model_sha256 = ""
    artifacts: tuple[str, ...] = ()

    def training_seconds(self, _run: str) -> float:
        return 90.0

    def run_tags(self, run: str, *_: str) -> dict[str, str]:
        return {"vae.model_sha256": self.model_sha256 if run == "r" else "0"}

    def recorded(self, *_: str) -> tuple[str, ...]:
        return self.artifacts


@pytest.fixture
def store(monkeypatch) -> Stored:
    """The store of the script."""
    stored = Stored()
    monkeypatch.setattr(script, "open_store", lambda *_: stored)
    return stored


@pytest.fixture
def results(root, vae, store, evaluation, quality, tmp_path, monkeypatch) -> dict:
    """The arguments of the script, with the files of a small model."""
    paths = {name: tmp_path / f"{name}.json" for name in ("evaluation", "quality", "run")}
    pages = {name: tmp_path / f"{name}.md" for name in ("readme", "page")}
    weights, params_file = tmp_path / "vae.safetensors", root / "params.yaml"
    model.save(vae(), weights)
    store.model_sha256 = files.sha256(weights)
    measured = quality | {"model_sha256": store.model_sha256}
    for path, values in zip(paths.values(), (evaluation, measured, {"run_id": "r"}), strict=True):
        path.write_text(json.dumps(values))
    for page in pages.values():
        page.write_text("<!-- results: begin -->\n<!-- results: end -->\n")
    hashes = {str(paths["evaluation"]): files.sha256(paths["evaluation"])}
    store.artifacts = params_file.read_text(), json.dumps(hashes)
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    epochs = load(params_file).train.epochs
    (recipes / "mine.sh").write_text(f"dvc exp run -S train.epochs={epochs}  # like the committed params.yaml\n")
    monkeypatch.setattr(script, "git", lambda *_: params_file.read_bytes())
    others = {"recipe": "mine", "recipes": recipes, "model": weights, "board": tmp_path / "board.csv"}
    return {"params": params_file} | paths | pages | others


def test_the_script_adds_the_present_results(results, vae):
    script.main(**results)
    (found,) = leaderboard.read(results["board"])
    assert found["parameters"] == str(sum(parameter.numel() for parameter in vae().parameters()))
    assert (found["recipe"], found["train_minutes"], found["frechet_binary"]) == ("mine", "1.500", "8.130")
    assert readme.results([found], short=True) in results["readme"].read_text()
    assert readme.results([found]) in results["page"].read_text()


@pytest.mark.parametrize(("name", "change"), [("quality", {"model_sha256": "0"}), ("run", {"run_id": "old"})])
def test_figures_of_another_model_are_refused(results, name, change):
    """A row never joins figures that were measured before and after the model was trained again."""
    results[name].write_text(json.dumps(json.loads(results[name].read_text()) | change))
    with pytest.raises(InputError, match=rf"{name}\.json was measured on another model.*dvc repro && dvc repro q"):
        script.main(**results)
    assert not results["board"].exists()


@pytest.mark.parametrize("name", ["", "other", "a|b", "start"])
def test_a_row_has_the_name_of_a_recipe(results, name):
    with pytest.raises(InputError, match=r"RECIPE=.* one of mine"):
        script.main(**results | {"recipe": name})
    assert not results["board"].exists()


def test_a_run_of_another_recipe_is_refused(results):
    """Otherwise `minute` could appear as `two-hours`. Another seed, or more samples, is the same recipe."""
    recipe, epochs = results["recipes"] / "mine.sh", load(results["params"]).train.epochs
    recipe.write_text(f"dvc exp run -S train.epochs={epochs + 2} \\\n  -S 'model.channels=[16,32]' -S train.seed=3\n")
    with pytest.raises(
        InputError, match=rf"train\.epochs is {epochs}, and {epochs + 2} in the recipe; `bash recipes/mine"
    ):
        script.main(**results)
    assert not results["board"].exists()
    recipe.write_text("dvc exp run -S evaluate.importance_samples=7 -S train.seed=3\n")
    script.main(**results)
    assert results["board"].exists()


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [("name: mnist ", "name: kmnist ", "data.name"), ("seed: 0 ", "seed: 3 ", "evaluate.seed")],
)
def test_an_evaluation_with_other_data_or_another_seed_is_refused(results, store, before, after, key):
    text, hashes = store.artifacts
    head, block, tail = text.partition(f"{key.partition('.')[0]}:")
    store.artifacts = head + block + tail.replace(before, after, 1), hashes
    with pytest.raises(InputError, match=rf"{key} is \w+, and \w+ in the recipe; `bash recipes/mine") as caught:
        script.main(**results)
    assert "\n" not in str(caught.value)
    assert not results["board"].exists()


def test_bounds_of_another_state_are_refused(results, store):
    """The file must have the hash that the run has recorded."""
    text, hashes = store.artifacts
    store.artifacts = text, hashes.replace('": "', '": "0')
    with pytest.raises(InputError, match=r"evaluation\.json differs from the one recorded in run r; `dvc repro`"):
        script.main(**results)
    assert not results["board"].exists()


def test_quality_that_was_emptied_is_refused(results):
    """`track` empties the file if the model is new."""
    results["quality"].write_text("{}")
    with pytest.raises(InputError, match=r"quality\.json was measured on another model.*dvc repro quality/dvc\.yaml"):
        script.main(**results)


def test_a_missing_measurement_of_samples_is_an_error(results):
    results["quality"].unlink()
    with pytest.raises(InputError, match=r"quality\.json: no such file; `dvc repro quality/dvc\.yaml`"):
        script.main(**results)


def test_leaderboard_has_the_published_run(root):
    """The rows of the recipe `minute` have the figures of the committed model, from more samples.
    The test is skipped if the workspace has other results. Once they are committed, `make leaderboard` adds them."""
    git = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml", "metrics/evaluation.json"]
    if subprocess.run(git, cwd=root, check=False).returncode:
        pytest.skip("the workspace has results that are not committed")
    evaluation = json.loads((root / "metrics/evaluation.json").read_text())
    config = params.load(root / "params.yaml")
    rows = leaderboard.read(root / "metrics/leaderboard.csv")
    published = [row for row in rows if (row["recipe"], row["seed"]) == ("minute", str(config.train.seed))]
    assert published
    for row in published:  # one for each number of importance samples
        assert float(row["neg_elbo_nats"]) == pytest.approx(evaluation["neg_elbo_nats"], abs=0.1)
        assert float(row["neg_elbo_grey_nats"]) == pytest.approx(evaluation["neg_elbo_grey_nats"], abs=0.1)
