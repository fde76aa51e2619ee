"""The tables of README.md and docs/ show the content of metrics/."""

import json

from vae.evaluation import leaderboard, readme

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
    assert readme.results([row("a")]).splitlines()[2:] == [
        "| `a` | 1,234,567 | 1.5 | 85.00 ± 0.21 | 50 | 1 | 90.13 | 0.63 | 25.0 + 65.1 | 91.50 | 20 | 8.1 ± 0.2 "
        "| 0.82, 0.83 |",
        "| training images |  |  |  |  |  |  |  |  |  |  | 1.1 | 0.85, 0.88 |",
    ]


def test_the_table_is_over_seeds():
    """Means over the seeds of a recipe, with the deviation of the bound, and the best bound first."""
    rows = [row("a", 0), row("a", 1, nll_iw_nats=85.2), row("a", 2, nll_iw_nats=85.4), row("b", nll_iw_nats=84.0)]
    lines = readme.results(rows).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| `b` | 1,234,567 | 1.5 | 84.00 ± 0.21 | 50 | 1 |")
    assert lines[3].startswith("| `a` | 1,234,567 | 1.5 | 85.20 ± 0.21 | 50 | 3, deviation 0.20 |")
    assert "| 8.1 ± 0.1 |" in lines[3]  # 0.24 / sqrt 3


def test_bounds_of_different_numbers_of_samples_are_apart():
    """A bound with more samples is another quantity: it is never averaged with one of fewer."""
    rows = leaderboard.put([row("a")], row("a", 1, importance_samples=5000, nll_iw_nats=84.0))
    assert [line.split(" | ")[3:6] for line in readme.results(rows).splitlines()[2:4]] == [
        ["84.00 ± 0.21", "5000", "1"],
        ["85.00 ± 0.21", "50", "1"],
    ]


def test_the_table_takes_rows_in_any_order():
    """Seeds of a recipe need not stand together."""
    rows = [row("a", 0), row("b", 0, nll_iw_nats=90.0), row("a", 1)]
    assert readme.results(rows) == readme.results([rows[0], rows[2], rows[1]])


def test_the_short_table_has_some_of_the_columns():
    rows = [row("a", 0), row("a", 1, nll_iw_nats=85.2)]
    lines = readme.results(rows, short=True).splitlines()
    assert lines[0] == "| recipe | train, minutes | NLL bound | K | seeds | neg-ELBO | Fréchet |"
    assert lines[2:] == ["| `a` | 1.5 | 85.10 ± 0.21 | 50 | 2, deviation 0.14 | 90.13 | 8.1 ± 0.2 |"]


def test_insert_replaces_the_old_table():
    page = "head\n<!-- x: begin -->\nold\n<!-- x: end -->\ntail"
    assert readme.insert(page, "new", "x") == "head\n<!-- x: begin -->\nnew\n<!-- x: end -->\ntail"


def test_both_tables_of_results_show_the_leaderboard(root):
    rows = leaderboard.read(root / "metrics/leaderboard.csv")
    assert rows
    for name, short in (("README.md", True), ("docs/results.md", False)):
        page = (root / name).read_text()
        assert readme.insert(page, readme.results(rows, short), "results") == page


def test_the_page_of_bounds_shows_how_loose_the_bound_is(root):
    """Its table and the sentence after it have the figures of metrics/annealing.json."""
    measured = json.loads((root / "metrics/annealing.json").read_text())
    page, shown = (root / "docs/bounds.md").read_text(), readme.bounds(measured)
    assert readme.insert(page, shown, "bounds") == page
    assert f"{measured['simulated_gap_nats']:.2f} ± {measured['simulated_gap_nats_stderr']:.2f}." in shown
