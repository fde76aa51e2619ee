"""The whole pipeline on a CUDA device, and its model on a machine without one."""

import json

import pytest
import torch

from tests.pipeline.project import BITWISE, EPOCHS

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="this machine has no CUDA device"),
]

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SERVED = """
import mlflow, torch, sys
assert not torch.cuda.is_available()
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[1]}/model")
print(len(model.predict([{"task": "generate", "n": 2}])[0]["images"]))
"""


def test_all_stages_run_on_the_gpu_and_a_cpu_serves_the_model(project):
    """`train.device: auto` takes the GPU. The record names it."""
    figures = project.json("metrics/evaluation.json")
    assert figures["device"] == "cuda"
    run = project.assert_whole(project.recorded())
    assert run.data.tags["model.device"] == "cuda"
    assert run.data.tags["machine.device"] == torch.cuda.get_device_name()
    assert (
        project.run("python", "-c", SERVED, run.info.run_id, MLFLOW_TRACKING_URI=project.uri, **NO_GPU).stdout == "2\n"
    )
    project.dvc("repro", "--force", "--single-item", "evaluate", **NO_GPU)
    on_cpu = project.json("metrics/evaluation.json")
    assert on_cpu["device"] == "cpu"
    assert on_cpu["neg_elbo_nats"] == pytest.approx(figures["neg_elbo_nats"], rel=0.01)


def test_a_second_training_gives_the_same_bits(project):
    hashes = project.hashes()
    project.dvc("repro", "--force")
    assert project.hashes() == {name: hashes[name] for name in BITWISE}


def test_a_killed_training_resumes_and_gives_the_same_bits(project):
    project.params(train={"seed": 31})
    with project.after_one_epoch(lambda: project.train("killed")) as training:
        training.process.kill()
        training.finish()
    assert "resuming after epoch 1" in project.train("killed").ended()
    project.train("whole", DVC_ROOT=str(project.folder / "elsewhere")).ended()
    for name in ("vae.safetensors", "train.csv"):
        assert (project.folder / "killed" / name).read_bytes() == (project.folder / "whole" / name).read_bytes()


@pytest.mark.skipif(GPUS < 2, reason="this machine has fewer than two CUDA devices")
def test_two_gpus_train_together(project):
    project.train("one").ended()
    assert f"epoch {EPOCHS} of" in project.train("two", TORCHRUN="--nproc-per-node gpu").ended()
    ours, theirs = (json.loads((project.folder / name / "validation.json").read_text()) for name in ("two", "one"))
    assert ours["val_neg_elbo_nats"] == pytest.approx(theirs["val_neg_elbo_nats"], rel=0.05)


def test_more_processes_than_gpus(project):
    done = project.train("many", TORCHRUN=f"--nproc-per-node {GPUS + 1}").finish()
    assert done.returncode == 1
    assert f"{GPUS + 1} processes, but this machine has {GPUS} GPUs" in done.stderr
