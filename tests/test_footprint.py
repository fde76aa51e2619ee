"""The memory of a training: measured, refused if it is not there, and the key that saves most is named."""

from vae.runtime import memory

import pytest
import torch

from vae import footprint, training
from vae.errors import InputError
from vae.model import DECODERS, VAE, MlpDecoder
from vae.optimizers import Adam

GRID = [
    {"architecture": "mlp"},
    {"architecture": "conv", "channels": [8, 16]},
    {"prior": "mixture", "mixture_components": 64},
    {"prior": "flow"},
]


@pytest.fixture
def images():
    """A few hundred random images."""
    return torch.randint(0, 256, (400, 784), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def refused(params, images, free: int) -> str:
    """The one line of the error."""
    with pytest.raises(InputError) as caught:
        footprint.check(params, images, free)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("train", [{"optimizer": "adam"}, {"optimizer": "muon"}])
@pytest.mark.parametrize("model", GRID, ids=str)
def test_what_is_held_is_what_a_training_holds(small, model, train):
    """A model without values has the same weights and the same buffers of the optimizers as a real one."""
    params = small(model=model, train=train)
    fit = training.Fit(VAE(params.model), params.train)
    weights = sum(tensor.nbytes for tensor in fit.model.parameters())
    buffers = sum(tensor.nbytes for item in fit.optimizers for kept in item.buffers.values() for tensor in kept)
    assert footprint.held_bytes(params) == 3 * weights + buffers


def kept_for_real(fit: training.Fit, images: torch.Tensor) -> int:
    """The bytes of all storages that autograd keeps in one real step, without the weights."""
    weights, sizes = {tensor.untyped_storage().data_ptr() for tensor in fit.model.parameters()}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages.append(tensor.untyped_storage())  # kept, so that no other tensor gets its place
        return tensor

    most, backward = 0, torch.Tensor.backward
    storages: list = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), pytest.MonkeyPatch.context() as patch:

        def counted(loss: torch.Tensor) -> None:
            nonlocal most
            sizes.clear()
            sizes.update({storage.data_ptr(): storage.nbytes() for storage in storages})
            most = max(most, sum(size for place, size in sizes.items() if place not in weights))
            storages.clear()
            backward(loss)

        patch.setattr(torch.Tensor, "backward", counted)
        fit.run_epoch(images, images[:10], "none")
    return most


@pytest.mark.parametrize("train", [{"importance_samples": 5}, {"importance_samples": 1}, {"importance_samples": 50}])
@pytest.mark.parametrize("model", GRID, ids=str)
def test_a_step_keeps_about_what_is_estimated(small, images, model, train):
    """Compared with the storages that autograd keeps in the real first epoch: within a fifth."""
    params = small(model=model, train=train | {"batch_size": 100})
    estimate = footprint.step_bytes(params, images)
    real = kept_for_real(training.Fit(VAE(params.model), params.train), images)
    assert real > 0
    assert estimate == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize(
    ("model", "train", "key"),
    [
        ({"architecture": "conv", "channels": [16384, 16384]}, {}, "model.channels"),
        ({"prior": "flow", "flow_hidden": [16384] * 2, "flow_couplings": 64}, {}, "model.flow_hidden"),
        ({"encoder": [16384] * 16}, {}, "model.encoder"),
        ({"prior": "mixture", "mixture_components": 65536, "latent_dim": 1024}, {}, "model."),
        ({}, {"importance_samples": 10**6}, "train.importance_samples"),
        ({}, {"importance_samples": 1, "batch_size": 10**6}, "train.batch_size"),
        ({}, {"refine_epochs": 1, "refine_importance_samples": 10**6}, "train.refine_importance_samples"),
        ({"prior": "mixture"}, {"prior_epochs": 1, "importance_samples": 2000, "batch_size": 400}, "train."),
    ],
    ids=str,
)
def test_too_large_a_training_is_refused_by_the_key_that_saves_most(small, images, model, train, key):
    """Nothing of that size is allocated: the largest of these would take 300 GB."""
    message = refused(small(model=model, train=train), images, 10**6)
    assert message.startswith(f"params.yaml: {key}")
    assert " GB of memory, and 0.0 GB are free; lower " in message


def test_a_new_network_needs_no_change(small, images, monkeypatch):
    """A decoder that the estimate does not know, with one huge hidden layer."""

    class Wide(MlpDecoder):
        def __init__(self, config) -> None:
            super().__init__(config.model_copy(update={"decoder": [2**20]}))

    params = small(train={"optimizer": "adam"})
    before = footprint.held_bytes(params)
    monkeypatch.setitem(DECODERS, "mlp", Wide)
    assert footprint.held_bytes(params) > before + 5 * 4 * 784 * 2**20
    assert "needs about 16.5 GB" in refused(params, images, 10**9)


def test_a_new_optimizer_needs_no_change(small, monkeypatch):
    """Its buffers count as they are."""
    params = small(train={"optimizer": "adam"})
    before, weights = footprint.held_bytes(params), sum(p.nbytes for p in VAE(params.model).parameters())
    original = Adam.__init__

    def third(self, *arguments) -> None:
        original(self, *arguments)
        self.buffers["third"] = [p.new_zeros(p.shape) for p in self.params]

    monkeypatch.setattr(Adam, "__init__", third)
    assert footprint.held_bytes(params) == before + weights


def test_what_fits_is_not_refused_and_leaves_no_trace(small, images):
    """The training that follows has the same bits as one without the check."""
    params = small(model={"prior": "flow"}, train={"epochs": 1})
    plain = training.start(params, images).run_epoch(images, images[:10], "dynamic")
    footprint.check(params, images, memory.free_bytes("cpu"))
    assert training.start(params, images).run_epoch(images, images[:10], "dynamic") == plain


def test_the_published_params_fit_into_small_machines(root, small, images):
    """params.yaml needs less than 1 GB."""
    from vae.params import load

    footprint.check(load(root / "params.yaml"), images, 10**9)
