"""The table of `make experiments`."""

import json
import subprocess
from pathlib import Path

import pytest

from tools import experiments as script
from vae.tracking.experiments import Experiment

PARAMS, RUN, VALIDATION, EVALUATION = map(Path, ("params.yaml", "run.json", "validation.json", "evaluation.json"))
SETTINGS = "data: {{name: {data}, binarization: dynamic}}\ntrain: {{seed: {seed}}}\nquality: {{seed: {seed}}}\n"


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """A function that commits a state, as HEAD or as an experiment, and one that returns the printed lines."""
    known: list[Experiment] = []

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def state(seed: int, val: float | None, pixels: str = "a" * 10, data: str = "mnist", images: int = 5000) -> None:
        (tmp_path / PARAMS).write_text(SETTINGS.format(data=data, seed=seed))
        measured = {"nll_iw_nats": 80.123, "nll_iw_nats_stderr": 0.2, "neg_elbo_nats": 82.0, "importance_samples": 10}
        contents = {
            RUN: {"run_id": f"run-{seed}"},
            VALIDATION: {} if val is None else {"val_neg_elbo_nats": val, "validation_images": images},
            EVALUATION: measured | {"test_images": 10000, "binarization_sha256": pixels},
        }
        for path, values in contents.items():
            (tmp_path / path).write_text(json.dumps(values))

    def commit(name: str, *arguments: object, **options: object) -> None:
        state(*arguments, **options)
        git("add", "--all")
        git("commit", "--quiet", "--message", name)
        if name != "HEAD":
            known.append(Experiment(name, git("rev-parse", "HEAD"), "", None))
            git("reset", "--quiet", "--hard", "HEAD~1")

    def lines() -> list[str]:
        script.main(PARAMS, RUN, validation=VALIDATION, evaluation=EVALUATION)
        return capsys.readouterr().out.splitlines()

    git("init", "--quiet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "experiments", lambda *_: known)
    return commit, state, lines


def test_the_best_comes_first_with_its_run_and_what_differs_from_head(table):
    commit, state, lines = table
    commit("HEAD", 0, 88.5)
    commit("worse", 1, 90.0)
    commit("better", 2, 87.25)
    title, head, *rows = lines()[1:]
    assert title == "mnist (dynamic), 10000 test images aaaaaaaa, 5000 validation images"
    assert head.split() == ["experiment", "validation", "NLL", "bound", "K", "neg-ELBO", "MLflow", "run", "changed"]
    assert [row.split()[0] for row in rows] == ["better", "HEAD", "worse"]
    assert rows[0].split() == ["better", "87.25", "80.12", "±", "0.20", "10", "82.00", "run-2", "train.seed=2"]
    assert rows[1].split()[-1] == "run-0"  # nothing is changed there
    assert len({row.index("run-") for row in rows}) == 1
    state(3, 86.0)
    assert [row.split()[0] for row in lines()[3:]] == ["workspace", "better", "HEAD", "worse"]


def test_figures_of_other_images_or_pixels_are_told_apart(table):
    commit, _, lines = table
    commit("HEAD", 0, 88.5)
    commit("pixels", 1, 70.0, pixels="bbbbbbbbbb")
    commit("digits", 2, 60.0, data="digits", images=287)
    commit("split", 3, 50.0, images=300)
    commit("failed", 4, None)
    printed = lines()
    titles = [line for line in printed if line and not line.startswith(" ")]
    assert titles == [
        "digits (dynamic), 10000 test images aaaaaaaa, 287 validation images",
        "mnist (dynamic), 10000 test images aaaaaaaa, 300 validation images",
        "mnist (dynamic), 10000 test images aaaaaaaa, 5000 validation images",
        "mnist (dynamic), 10000 test images bbbbbbbb, 5000 validation images",
        "without figures",
        "Figures of different groups do not compare: they are of other images or other pixels.",
    ]
    for title, name in zip(titles, ("digits", "split", "HEAD", "pixels", "failed"), strict=False):
        first = printed.index(title) + 2
        assert printed[first].split()[0] == name
        assert not printed[first + 1]


@pytest.mark.parametrize("broken", ["", "not JSON", "<<<<<<< HEAD\n{}", "[1]"])
def test_a_state_with_broken_files_is_listed_without_figures(table, broken):
    commit, _, lines = table
    commit("HEAD", 0, 88.5)
    for path in (VALIDATION, EVALUATION, RUN):
        path.write_text(broken)
    printed = lines()
    assert printed[printed.index("without figures") + 2].strip() == "workspace"
