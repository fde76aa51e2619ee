"""quality/dvc.yaml, a separate pipeline that measures the quality of samples."""

import json
import re

import pytest

pytestmark = pytest.mark.pipeline

QUALITY = "quality/dvc.yaml"


def assert_quality(project, run_id) -> None:
    """The run has the quality of the samples in metrics/quality.json, each figure once, and their picture."""
    logged = project.client.get_run(run_id).data.metrics
    figures = {name: value for name, value in project.json("metrics/quality.json").items() if isinstance(value, float)}
    assert len(figures) > 10
    assert {name: logged.get(name) for name in figures} == figures
    assert all(len(project.client.get_metric_history(run_id, name)) == 1 for name in figures)
    assert project.text(run_id, "metrics/quality.json") == (project.folder / "metrics/quality.json").read_text()
    assert [key for key, _ in project.pictures(run_id)].count("quality_nearest") == 2  # a picture and its thumbnail


def assert_absent_in_another_model(project) -> None:
    """After a new model, the figures are absent, charts and pictures are shown, and no command of DVC complains. The
    project is then as before."""
    before = (project.folder / "metrics/quality.json").read_text()
    project.params(generate={"seed": 16})
    project.dvc("repro")
    assert (project.folder / "metrics/quality.json").read_text() == before  # the same model
    project.params(train={"seed": 16})
    project.dvc("repro")
    assert project.json("metrics/quality.json") == {}
    page = project.home / "page/index.html"
    for command in (
        ("plots", "show", "--out", page.parent),
        ("exp", "save", "--name", "saved"),
        ("exp", "show"),
        ("metrics", "show"),
        ("metrics", "diff", "HEAD"),
        ("plots", "diff", "HEAD", "saved", "--out", page.parent),
    ):
        done = project.dvc(*map(str, command))
        assert not re.search("warning|error|missing|fail|could not", done.stderr, flags=re.I), done.stderr
    shown = page.read_text()
    for title in ("NLL bound by", "Nats in each latent", "Rate and distortion of the test", "Share of each class"):
        assert f'"text": "{title}' in shown
    assert {"HEAD", "saved"} == set(re.findall(r'"importance_samples": "4"[^}]*"rev": "(\w+)"', shown))
    assert '<script src="vega.js"></script>' in shown  # a copy next to the page comes first
    assert "nearest.png" in shown
    project.run("git", "restore", ".")
    project.dvc("checkout")


def test_the_quality_of_samples_is_measured_apart_from_the_pipeline(project):
    """`dvc repro` is not affected, a new VAE does not fit the classifier again, and every run of a model has its
    quality."""
    metrics = project.folder / "metrics"
    printed = project.dvc("repro", QUALITY).stdout
    assert "Stage 'train' didn't change" in printed  # what it needs comes first
    assert "Running stage 'quality/dvc.yaml:classifier'" in printed
    found = project.json("metrics/quality.json")
    assert found["frechet_grey"] > found["frechet_grey_train"] > 0
    assert found["frechet_grey_stderr"] > 0
    assert sum(part["share"] for part in found["class_shares"]) == pytest.approx(1)
    assert (metrics / "nearest.png").is_file()
    assert_quality(project, project.recorded())
    for pipeline in ("dvc.yaml", QUALITY):
        assert "up to date" in project.dvc("repro", pipeline).stdout

    project.commit()
    assert_absent_in_another_model(project)
    before = project.runs()
    project.dvc("exp", "run", "--pipeline", QUALITY, "--set-param", "train.seed=15")
    assert project.runs().keys() - before.keys() == {project.recorded()}
    trained = project.recorded()
    project.assert_whole(trained)
    changed = project.json("metrics/quality.json")
    assert changed["classifier_sha256"] == found["classifier_sha256"]
    assert changed["frechet_grey"] != found["frechet_grey"]

    printed = project.dvc("exp", "run", "--pipeline", QUALITY, "--set-param", "evaluate.seed=7").stdout
    assert "Stage 'quality/dvc.yaml:quality' didn't change" in printed
    assert project.recorded() != trained
    for run_id in (trained, project.recorded()):
        assert_quality(project, run_id)

    options = ["--validation", "metrics/validation.json", "--evaluation", "metrics/evaluation.json"]
    table = project.script("tools/experiments.py", "params.yaml", "metrics/mlflow.json", *options).stdout
    assert table.count("digits (dynamic), 360 test images") == 2  # evaluate.seed makes other pixels
    assert "do not compare" in table
    assert trained in table
    assert project.recorded() in table
    assert "  train.seed=15 evaluate.seed=7\n" in table

    other = metrics / "other.json"
    other.write_text(json.dumps(changed | {"model_sha256": "of another model"}))
    assert "other.json" in project.error("pipeline/track_quality.py", "params.yaml", str(other), "samples/row.png")
