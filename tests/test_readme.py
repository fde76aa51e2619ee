"""The tables of README.md and docs/ show the content of metrics/."""

import json

from vae.evaluation import leaderboard, readme


def test_a_line_of_the_table(row):
    assert set(row("a")) == set(leaderboard.COLUMNS)
    assert readme.results([row("a")]).splitlines()[2:] == [
        "| `a` | 1,234,567 | 1.5 | 85.00 ± 0.21 | 50 | 1 | 90.13 | 0.63 | 25.0 + 65.1 | 91.50 | 20 | 8.1 ± 0.2 "
        "| 0.82, 0.83 |",
        "| training images |  |  |  |  |  |  |  |  |  |  | 1.1 | 0.85, 0.88 |",
    ]


def test_a_line_is_a_mean_over_seeds(row):
    """A line has means over the seeds of a recipe, and the deviation of the bound. The best bound comes first."""
    rows = [row("a", 0), row("a", 1, nll_iw_nats=85.2), row("a", 2, nll_iw_nats=85.4), row("b", nll_iw_nats=84.0)]
    lines = readme.results(rows).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| `b` | 1,234,567 | 1.5 | 84.00 ± 0.21 | 50 | 1 |")
    assert lines[3].startswith("| `a` | 1,234,567 | 1.5 | 85.20 ± 0.21 | 50 | 3, deviation 0.20 |")
    assert "| 8.1 ± 0.1 |" in lines[3]  # 0.24 / sqrt 3


def test_each_number_of_samples_has_a_line(row):
    """Bounds with different numbers of samples are never averaged."""
    rows = leaderboard.put([row("a")], row("a", 1, importance_samples=5000, nll_iw_nats=84.0))
    assert [line.split(" | ")[3:6] for line in readme.results(rows).splitlines()[2:4]] == [
        ["84.00 ± 0.21", "5000", "1"],
        ["85.00 ± 0.21", "50", "1"],
    ]


def test_the_table_takes_rows_in_any_order(row):
    """The seeds of a recipe need not be next to each other."""
    rows = [row("a", 0), row("b", 0, nll_iw_nats=90.0), row("a", 1)]
    assert readme.results(rows) == readme.results([rows[0], rows[2], rows[1]])


def test_the_short_table_has_some_of_the_columns(row):
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
