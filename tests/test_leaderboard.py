"""The README's results are those of metrics/, and the table shows what the rows hold."""

import json

import pytest

from vae import leaderboard

EVALUATION = {
    "neg_elbo_nats": 90.126,
    "neg_elbo_nats_stderr": 0.25,
    "nll_iw_nats": 85.0,
    "nll_iw_nats_stderr": 0.21,
    "importance_samples": 50,
    "rate_nats": 25.0,
    "distortion_nats": 65.1,
    "neg_elbo_grey_nats": 91.5,
    "active_units": 20,
    "binarization_sha256": "0",
}


def test_row_and_table():
    rows = {
        "b": leaderboard.row("b", EVALUATION, 90),
        "a": leaderboard.row("a", EVALUATION | {"nll_iw_nats": 84.0}, 30),
    }
    lines = leaderboard.table(rows).splitlines()
    assert lines[2].startswith("| `a` | 0.50 | 84.00 ± 0.21 (K=50) |")
    assert lines[3] == "| `b` | 1.50 | 85.00 ± 0.21 (K=50) | 90.13 ± 0.25 | 25.0 + 65.1 | 91.50 | 20 |"


def test_insert_replaces_what_stood_there():
    readme = "head\n<!-- x: begin -->\nold\n<!-- x: end -->\ntail"
    assert leaderboard.insert(readme, "new", "x") == "head\n<!-- x: begin -->\nnew\n<!-- x: end -->\ntail"


def test_readme_shows_the_leaderboard(root):
    rows = leaderboard.read(root / "metrics/leaderboard.csv")
    assert rows
    readme = (root / "README.md").read_text()
    assert leaderboard.insert(readme, leaderboard.table(rows)) == readme


def test_leaderboard_has_the_published_run(root):
    """The row of the recipe that params.yaml is has the committed model, scored with more samples."""
    evaluation = json.loads((root / "metrics/evaluation.json").read_text())
    published = leaderboard.read(root / "metrics/leaderboard.csv")["minute"]
    assert float(published["neg_elbo_nats"]) == pytest.approx(evaluation["neg_elbo_nats"], abs=0.1)
    assert float(published["neg_elbo_grey_nats"]) == pytest.approx(evaluation["neg_elbo_grey_nats"], abs=0.1)


def test_readme_says_how_loose_the_bound_is(root):
    """The sentence in `Check the bound` is of metrics/annealing.json."""
    measured = json.loads((root / "metrics/annealing.json").read_text())
    readme = (root / "README.md").read_text()
    for name in ("iw_minus_ais_nats", "simulated_gap_nats"):
        assert f"{measured[name]:.2f} ± {measured[f'{name}_stderr']:.2f}" in readme
