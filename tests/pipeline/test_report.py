"""The report that CI posts on a change."""

import copy

import pytest

pytestmark = pytest.mark.pipeline

FILES = "https://host.example/blob"


def test_the_report_shows_what_a_change_did_from_git_alone(project, tmp_path):
    """In a clone without DVC's cache, as CI has it."""
    evaluation = project.folder / "metrics/evaluation.json"
    project.params(evaluate={"importance_samples": 8})
    before = project.json("metrics/evaluation.json")["importance_samples"]
    evaluation.write_text(evaluation.read_text().replace(f'"importance_samples": {before}', '"importance_samples": 8'))
    (project.folder / "samples/grid.png").unlink()
    project.commit()
    project.run("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    clone = copy.copy(project)
    clone.folder = tmp_path / "clone"

    old, new = clone.run("git", "rev-parse", "HEAD~1", "HEAD").stdout.split()
    printed = clone.run(".ci/report", "HEAD~1", "HEAD", FILES).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line]
    assert ["Path", "Param", old[:7], new[:7]] in rows
    assert ["params.yaml", "evaluate.importance_samples", str(before), "8"] in rows
    assert ["metrics/evaluation.json", "importance_samples", str(before), "8", str(8 - before)] in rows
    assert f"![samples/grid.png]({FILES}/{old}/samples/grid.png?raw=true) | none |" in printed
    for commit in (old, new):
        assert f"({FILES}/{commit}/plots/reconstructions.png?raw=true)" in printed

    assert clone.run(".ci/report", "HEAD", "HEAD", FILES).stdout.count("no change") == 2
    wrong = clone.run(".ci/report", "nothing", "HEAD", FILES, check=False)
    assert (wrong.returncode, wrong.stderr) == (1, "error: nothing is not a commit in this clone\n")
