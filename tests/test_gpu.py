"""Trainings on a CUDA device: the same bits twice, also if resumed, and models that a CPU can use."""

import io

import pytest
import torch
import torch.nn.functional as F

from vae import data, device, model, training
from vae.evaluation import metrics

DEVICE = "cuda"
HERE = DEVICE == "cpu" or torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="this machine has no CUDA device")]

CASES = [
    {"model": {"prior": "standard-normal"}, "train": {"precision": "fp32", "importance_samples": 1}},
    {
        "model": {"architecture": "conv", "prior": "mixture"},
        "train": {"precision": "fp32", "prior_epochs": 1, "optimizer": "muon", "augmentation": 0.5},
    },
    {
        "model": {"architecture": "conv", "prior": "flow"},
        "train": {"precision": "auto", "refine_epochs": 1, "optimizer": "muon", "gradient_clip": 1.0},
    },
]


@pytest.fixture
def start(small, digits):
    """Makes a new training on the device, as the stage does, with its training and validation images."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()

    def make(model: dict, train: dict):
        config = small(model=model, train=train | {"device": DEVICE, "epochs": 2})
        where = device.setup(config.train)
        split = digits.images[:400].to(where).split([300, 100])
        return training.start(config, split[0]), *split

    yield make
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models are equal bit for bit."""
    second = other.state_dict()
    return all(torch.equal(tensor, second[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("case", CASES, ids=["mlp", "conv, mixture", "conv, flow"])
def test_two_trainings_give_the_same_bits_and_so_does_a_resumed_one(start, case):
    """The checkpoint is read as the stage reads it, into the memory of the CPU."""
    whole, again, resumed = start(**case), start(**case), start(**case)
    records = []
    for record in training.fit(*whole, "dynamic"):
        records.append(record)
        if record.epoch == 1:
            torch.save(whole[0].state_dict(), file := io.BytesIO())
    assert next(whole[0].model.parameters()).device.type == DEVICE
    assert list(training.fit(*again, "dynamic")) == records
    assert equal(whole[0].model, again[0].model)
    resumed[0].load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True, map_location="cpu"))
    assert list(training.fit(*resumed, "dynamic")) == records[1:]
    assert equal(whole[0].model, resumed[0].model)


@pytest.mark.parametrize("case", CASES, ids=["mlp", "conv, mixture", "conv, flow"])
def test_a_cpu_reads_the_model_and_measures_the_same(start, small, tmp_path, case):
    """The noise differs between devices, so the figures agree within their standard errors."""
    fit, train, validation = start(**case)
    list(training.fit(fit, train, validation, "dynamic"))
    model.save(fit.model, tmp_path / "model", device=DEVICE, precision=fit.precision)
    vae = model.load(tmp_path / "model")
    assert next(vae.parameters()).device.type == "cpu"
    x = data.unit(validation)
    with torch.no_grad():
        for ours, theirs in zip(vae.encode(x.cpu()), fit.model.eval().encode(x), strict=True):
            torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-3, atol=1e-4)
    config = small().evaluate.model_copy(update={"importance_samples": 50, "grey_samples": 5})
    ours, _ = metrics.evaluate(vae, validation.cpu(), train.cpu(), config)
    theirs, _ = metrics.evaluate(fit.model, validation, train, config)
    assert ours["binarization_sha256"] == theirs["binarization_sha256"]
    for name in ("neg_elbo_nats", "nll_iw_nats", "neg_elbo_grey_nats"):
        assert abs(ours[name] - theirs[name]) < 0.5 * ours[f"{name}_stderr"], name


def test_fp32_is_float32(start):
    """Products and convolutions have no fewer bits than float32: TF32 would be off by one in a thousand."""
    start(**CASES[0])
    x, weight = torch.randn(8, 16, 28, 28), torch.randn(16, 16, 3, 3)
    found = F.conv2d(x.to(DEVICE), weight.to(DEVICE)).cpu().double()
    expected = F.conv2d(x.double(), weight.double())
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    left, right = torch.randn(100, 300), torch.randn(300, 100)
    found, expected = (left.to(DEVICE) @ right.to(DEVICE)).cpu().double(), left.double() @ right.double()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
