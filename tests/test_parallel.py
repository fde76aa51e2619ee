"""Several processes that train together compute what one process computes, to rounding."""

import os
import subprocess
import sys
from statistics import mean, stdev

import pytest
import torch

from tests import together
from vae import parallel, params, training
from vae.errors import InputError

LIMIT_SECONDS = 600  # only a hang takes this long
CASES = [
    {"model": {"prior": "standard-normal"}, "train": {"importance_samples": 1, "augmentation": 0.5}},
    {  # a batch takes seven parts
        "model": {"prior": "flow"},
        "train": {"importance_samples": 200, "prior_epochs": 1, "gradient_clip": 1.0, "optimizer": "muon"},
    },
    {
        "model": {"architecture": "conv", "prior": "mixture"},
        "train": {"importance_samples": 2, "prior_epochs": 1, "refine_epochs": 1, "optimizer": "muon"},
    },
]
PROCESSES = 3  # a batch of 64 is 22, 21 and 21 images


@pytest.mark.scale
def test_three_processes_compute_what_one_computes(small, digits, root, tmp_path):
    """All random numbers are the same, so the sums of a step differ by rounding alone."""
    configs = [small(**case | {"train": case["train"] | {"epochs": 2}}) for case in CASES]
    images = digits.images[: together.SIZE + 100]
    torch.save({"images": images, "configs": configs}, tmp_path / "given")
    environment = os.environ | {"TORCHRUN": f"--nproc-per-node {PROCESSES}", "PYTHONPATH": "src:."}
    command = [sys.executable, "tests/together.py", str(tmp_path / "given"), str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]
    for index, config in enumerate(configs):
        alone = together.compute(config, images)
        for rank in ranks:
            assert_gradients(rank[index], alone)
            assert_training(rank[index], alone)
            assert_equal_bits(rank[index], ranks[0][index])
        assert_within_seeds(ranks[0][index], config, images)


def assert_gradients(found: dict, alone: dict) -> None:
    """The gradients of a batch are those of one process, also of an uneven batch that is computed in parts."""
    for name in [key.removeprefix("terms, ") for key in alone if key.startswith("terms, ")]:
        torch.testing.assert_close(found[f"terms, {name}"], alone[f"terms, {name}"], rtol=1e-5, atol=1e-5)
        gradients, expected = found[f"gradients, {name}"], alone[f"gradients, {name}"]
        assert gradients.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(gradients[key], expected[key], rtol=1e-4, atol=1e-4)
    assert found["validation"] == pytest.approx(alone["validation"], rel=1e-6)


def assert_training(found: dict, alone: dict) -> None:
    """Rounding errors grow from step to step, but one epoch is too short for a difference that matters."""
    assert len(found["records"]) == len(alone["records"])
    ours, theirs = found["records"][0], alone["records"][0]
    assert ours.train_neg_elbo_nats == pytest.approx(theirs.train_neg_elbo_nats, rel=1e-3)
    assert ours.val_neg_elbo_nats == pytest.approx(theirs.val_neg_elbo_nats, rel=1e-3)


def assert_within_seeds(found: dict, config: params.Params, images: torch.Tensor) -> None:
    """The training ends as near to the mean of four seeds of one process as these seeds do."""
    train, validation = images.split([together.SIZE, 100])
    ends = []
    for seed in range(4):
        changed = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        *_, last = training.fit(training.start(changed, train), train, validation, "dynamic")
        ends.append(last.val_neg_elbo_nats)
    assert abs(found["records"][-1].val_neg_elbo_nats - mean(ends)) < 3 * stdev(ends)


def assert_equal_bits(found: dict, first: dict) -> None:
    """All processes end with the same model, and so does a training that was resumed."""
    assert found["records"] == first["records"]
    for name, tensor in first["weights"].items():
        assert torch.equal(found["weights"][name], tensor), name
        assert torch.equal(found["resumed weights"][name], tensor), name


def test_a_process_without_torchrun_is_alone():
    """It opens no connection, and other jobs' variables do not matter."""
    with parallel.group(torch.device("cpu"), 1):
        assert (parallel.rank(), parallel.count(), parallel.local()) == (0, 1, (0, 1))
        rows = torch.arange(5.0)
        assert parallel.share(rows).equal(rows)
        assert parallel.total(rows) is rows
        assert parallel.of_first(rows) is rows


@pytest.fixture
def under_torchrun(monkeypatch):
    """The variables of a process that torchrun has started, of many."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "99", "WORLD_SIZE": "100"}.items():
        monkeypatch.setenv(name, value)


def test_more_processes_than_images_in_a_batch(under_torchrun):
    with pytest.raises(InputError, match=r"^TORCHRUN: 100 processes, but train\.batch_size is 64; start fewer$"):
        parallel.group(torch.device("cpu"), 64).__enter__()


@pytest.mark.parametrize("text", ["[/x/gloo/transport/tcp/pair.cc:545] Read error: Connection reset", "NCCL error"])
def test_a_lost_process_is_one_clear_line(text):
    kind = torch.distributed.DistBackendError if "NCCL" in text else RuntimeError
    line = "^another process of this training has ended; run the same command to go on$"
    with pytest.raises(InputError, match=line), parallel.group(torch.device("cpu"), 64):
        raise kind(text)


def test_another_error_keeps_its_words():
    with pytest.raises(RuntimeError, match="shapes"), parallel.group(torch.device("cpu"), 64):
        raise RuntimeError("shapes do not match")
