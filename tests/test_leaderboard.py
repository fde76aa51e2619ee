"""The README's results are those of metrics/, and the table shows what the rows hold."""

import hashlib
import json
import subprocess
from types import SimpleNamespace

import pytest

from pipeline import leaderboard as script
from vae import annealing, leaderboard, model, params, tracking
from vae.errors import InputError

EVALUATION = {
    "neg_elbo_nats": 90.126,
    "neg_elbo_nats_stderr": 0.25,
    "fitted_neg_elbo_nats": 89.5,
    "nll_iw_nats": 85.0,
    "nll_iw_nats_stderr": 0.21,
    "importance_samples": 50,
    "rate_nats": 25.0,
    "distortion_nats": 65.126,
    "neg_elbo_grey_nats": 91.5,
    "active_units": 20,
    "binarization_sha256": "0",
}
QUALITY = {
    "frechet_binary": 8.13,
    "frechet_binary_stderr": 0.24,
    "precision_binary": 0.817,
    "recall_binary": 0.83,
    "frechet_binary_train": 1.06,
    "precision_binary_train": 0.855,
    "recall_binary_train": 0.878,
    "frechet_grey": 1.0,
}


def row(recipe: str, seed: int = 0, **changes: float) -> leaderboard.Row:
    return leaderboard.row(recipe, seed, 1234567, 90.0, EVALUATION | changes, QUALITY)


def test_a_line_of_the_table():
    assert set(row("a")) == set(leaderboard.COLUMNS)
    assert leaderboard.table([row("a")]).splitlines()[2:] == [
        "| `a` | 1,234,567 | 1.5 | 85.00 ± 0.21 | 50 | 1 | 90.13 | 0.63 | 25.0 + 65.1 | 91.50 | 20 | 8.1 ± 0.2 "
        "| 0.82, 0.83 |",
        "| training images |  |  |  |  |  |  |  |  |  |  | 1.1 | 0.85, 0.88 |",
    ]


def test_the_table_is_over_seeds():
    """Means over the seeds of a recipe, with the deviation of the bound, and the best bound first."""
    rows = [row("a", 0), row("a", 1, nll_iw_nats=85.2), row("a", 2, nll_iw_nats=85.4), row("b", nll_iw_nats=84.0)]
    lines = leaderboard.table(rows).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| `b` | 1,234,567 | 1.5 | 84.00 ± 0.21 | 50 | 1 |")
    assert lines[3].startswith("| `a` | 1,234,567 | 1.5 | 85.20 ± 0.21 | 50 | 3, deviation 0.20 |")
    assert "| 8.1 ± 0.1 |" in lines[3]  # 0.24 / sqrt 3


def test_bounds_of_different_numbers_of_samples_are_apart():
    """A bound with more samples is another quantity: it is never averaged with one of fewer."""
    rows = leaderboard.put([row("a")], row("a", 1, importance_samples=5000, nll_iw_nats=84.0))
    assert [line.split(" | ")[3:6] for line in leaderboard.table(rows).splitlines()[2:4]] == [
        ["84.00 ± 0.21", "5000", "1"],
        ["85.00 ± 0.21", "50", "1"],
    ]


def test_the_table_takes_rows_in_any_order():
    """Seeds of a recipe need not stand together."""
    rows = [row("a", 0), row("b", 0, nll_iw_nats=90.0), row("a", 1)]
    assert leaderboard.table(rows) == leaderboard.table([rows[0], rows[2], rows[1]])


def test_rows_come_back_and_are_replaced(tmp_path):
    rows = [row("a", 0), row("a", 1)]
    leaderboard.write(rows, tmp_path / "board.csv")
    assert leaderboard.read(tmp_path / "board.csv") == rows
    assert leaderboard.read(tmp_path / "none.csv") == []
    better = row("a", 0, nll_iw_nats=80.0)
    assert leaderboard.put(rows, better) == [better, rows[1]]


@pytest.fixture
def results(root, vae, tmp_path, monkeypatch):
    """The arguments of the script, with the files of a model of its own."""
    paths = [root / "params.yaml", *(tmp_path / f"{name}.json" for name in ("evaluation", "quality", "run"))]
    weights, board, readme = (tmp_path / name for name in ("vae.safetensors", "board.csv", "README.md"))
    model.save(vae(), weights)
    quality = QUALITY | {"model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    for path, values in zip(paths[1:], (EVALUATION, quality, {"run_id": "r"}), strict=True):
        path.write_text(json.dumps(values))
    readme.write_text("<!-- results: begin -->\n<!-- results: end -->\n")
    store = SimpleNamespace(
        training_seconds=lambda run: 90.0,
        run_tags=lambda run, *_: {"vae.model_sha256": quality["model_sha256"] if run == "r" else "0"},
        recorded=lambda *_: [paths[0].read_text(), json.dumps({str(paths[1]): tracking.file_sha256(paths[1])})],
    )
    monkeypatch.setattr(tracking, "Store", lambda *_: store)
    recipe = tmp_path / "recipes/mine.sh"
    recipe.parent.mkdir()
    recipe.write_text("dvc exp run -S train.epochs=4  # as it is\n")
    monkeypatch.setattr(tracking, "git", lambda *_: paths[0].read_bytes())
    return (*paths, weights, board, readme, recipe.parent, "mine")


def test_the_script_adds_the_present_results(results, vae):
    script.main(*results)
    board, readme = results[-4:-2]
    (found,) = leaderboard.read(board)
    assert found["parameters"] == str(sum(parameter.numel() for parameter in vae().parameters()))
    assert (found["recipe"], found["train_minutes"], found["frechet_binary"]) == ("mine", "1.500", "8.130")
    assert leaderboard.table([found]) in readme.read_text()


@pytest.mark.parametrize(
    ("name", "content"), [("quality", QUALITY | {"model_sha256": "0"}), ("run", {"run_id": "old"})]
)
def test_figures_of_another_model_are_refused(results, name, content):
    """What was measured before the model was trained anew never stands beside what was measured after."""
    path = next(path for path in results[1:4] if path.stem == name)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{name}\.json: of another model.*dvc repro && dvc repro quality/dvc\.yaml"):
        script.main(*results)
    assert not results[-4].exists()


@pytest.mark.parametrize("name", ["", "other", "a|b", "start"])
def test_a_row_has_the_name_of_a_recipe(results, name):
    with pytest.raises(InputError, match=r"RECIPE=.* one of mine"):
        script.main(*results[:-1], name)
    assert not results[-4].exists()


def test_a_row_is_what_its_recipe_makes(results):
    """Else `minute` could stand in the table as `two-hours`. Another seed, or more samples, is the same recipe."""
    recipe = results[-2] / "mine.sh"
    recipe.write_text("dvc exp run -S train.epochs=5 \\\n  -S 'model.channels=[16,32]' -S train.seed=3\n")
    with pytest.raises(InputError, match=r"train\.epochs is 4, and 5 in the recipe; `bash recipes/mine"):
        script.main(*results)
    assert not results[-4].exists()
    recipe.write_text("dvc exp run -S evaluate.importance_samples=7 -S train.seed=3\n")
    script.main(*results)
    assert results[-4].exists()


def test_bounds_of_another_state_are_refused(results):
    results[1].write_text(json.dumps(EVALUATION | {"nll_iw_nats": 80.0}))
    stale = tracking.Store().recorded()[1]
    with pytest.MonkeyPatch.context() as patch:
        store = tracking.Store()
        patch.setattr(store, "recorded", lambda *_: [results[0].read_text(), stale.replace('": "', '": "0')])
        with pytest.raises(InputError, match=r"evaluation\.json: not what run r has; `dvc repro`"):
            script.main(*results)
    assert not results[-4].exists()


def test_samples_that_were_not_measured_are_asked_for(results):
    results[2].unlink()
    with pytest.raises(InputError, match=r"quality\.json: no such file; `dvc repro quality/dvc\.yaml`"):
        script.main(*results)


def test_insert_replaces_what_stood_there():
    readme = "head\n<!-- x: begin -->\nold\n<!-- x: end -->\ntail"
    assert leaderboard.insert(readme, "new", "x") == "head\n<!-- x: begin -->\nnew\n<!-- x: end -->\ntail"


def test_readme_shows_the_leaderboard(root):
    rows = leaderboard.read(root / "metrics/leaderboard.csv")
    assert rows
    readme = (root / "README.md").read_text()
    assert leaderboard.insert(readme, leaderboard.table(rows)) == readme


def test_leaderboard_has_the_published_run(root):
    """The rows of the recipe that params.yaml is have the committed model, each scored with more samples.

    A workspace with results of its own says nothing of these; once they are committed, `make leaderboard` adds them.
    """
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


def test_readme_shows_how_loose_the_bound_is(root):
    """The table in `Check the bound` and the sentence behind it are of metrics/annealing.json."""
    measured = json.loads((root / "metrics/annealing.json").read_text())
    readme = (root / "README.md").read_text()
    shown = annealing.table(measured)
    assert leaderboard.insert(readme, shown, "bounds") == readme
    assert f"{measured['simulated_gap_nats']:.2f} ± {measured['simulated_gap_nats_stderr']:.2f}." in shown
