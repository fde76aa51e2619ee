"""quality/dvc.yaml, a separate pipeline that measures the quality of samples."""

import json

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


def test_the_quality_of_samples_is_measured_apart_from_the_pipeline(project):
    """`dvc repro` is not affected, a new VAE does not fit the classifier again, and every run of a model has its
    quality."""
    metrics = project.folder / "metrics"
    before = project.runs()
    printed = project.dvc("repro", QUALITY).stdout
    assert "Stage 'train' didn't change" in printed  # what it needs comes first
    assert "Running stage 'quality/dvc.yaml:classifier'" in printed
    found = project.json("metrics/quality.json")
    assert found["frechet_grey"] > found["frechet_grey_train"] > 0
    assert found["frechet_grey_stderr"] > 0
    assert sum(found["class_shares"]) == pytest.approx(1)
    assert (metrics / "nearest.png").is_file()
    assert_quality(project, project.recorded())
    for pipeline in ("dvc.yaml", QUALITY):
        assert "up to date" in project.dvc("repro", pipeline).stdout

    project.commit()
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

    other = metrics / "other.json"
    other.write_text(json.dumps(changed | {"model_sha256": "of another model"}))
    assert "other.json" in project.error("pipeline/track_quality.py", "params.yaml", str(other), "plots/latent_kl.png")


def test_the_quality_of_one_model_does_not_stay_beside_another(project):
    measured = {"model_sha256": project.hashes()["models/vae.safetensors"]}
    files = [project.folder / "metrics" / name for name in ("quality.json", "nearest.png")]
    for file in files:
        file.write_text(json.dumps(measured))
    project.commit()
    project.params(generate={"seed": 16})
    project.dvc("repro")
    assert all(file.exists() for file in files)  # the same model
    project.params(train={"seed": 16})
    project.dvc("repro")
    assert not any(file.exists() for file in files)  # DVC would list them as results of the new model
