"""Training: repeatable and resumable bit for bit, with the scheduled rates and a falling loss."""

from vae.runtime import live

import io
import json
import math
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch

from vae import augmentation, data, model, objective, optimizers, training
from vae.errors import InputError
from vae.evaluation import metrics
from vae.idx import PIXELS
from vae.schedule import Step

SIZE = 300  # images of the bitwise tests: four batches of 64 and one of 44
STILL = {  # rates so low that no weight changes
    "learning_rate": 1e-30,
    "prior_learning_rate": 1e-30,
    "flow_learning_rate": 1e-30,
    "muon_learning_rate": 1e-30,
}


@pytest.fixture
def start(small, digits):
    """Makes a new training with its training and validation images, from fields of the section `train`."""

    def make(seed: int = 0, prior: str = "standard-normal", architecture: str = "mlp", **train: object):
        config = small(model={"prior": prior, "architecture": architecture}, train=train)
        torch.manual_seed(seed)
        train, validation = digits.images[: SIZE + 100].split([SIZE, 100])
        return training.Fit(model.VAE(config.model), config.train), train, validation

    return make


@pytest.fixture
def script(monkeypatch):
    """pipeline/train.py, without the observer that its import starts."""
    monkeypatch.setattr(live, "start", lambda: None)
    from pipeline import train

    return train


def run(start: tuple, binarization: str = "dynamic") -> list[training.Record]:
    """All records of a training."""
    return list(training.fit(*start, binarization))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models are equal bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("prior", "architecture"), [("standard-normal", "mlp"), ("mixture", "mlp"), ("flow", "mlp"), ("mixture", "conv")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bitwise_repeatable(start, tmp_path, prior, architecture, precision):
    """Two trainings give the same records and the same file, even if the global generator is used meanwhile."""
    files, records = [], []
    for name in ("first", "second"):
        fit, *images = start(prior=prior, architecture=architecture, precision=precision, epochs=2)
        rows = []
        for record in training.fit(fit, *images, "dynamic"):
            rows.append(record)
            torch.rand(len(files) + 1)
        model.save(fit.model, tmp_path / name)
        files.append((tmp_path / name).read_bytes())
        records.append(rows)
    assert records[0] == records[1]
    assert files[0] == files[1]


@pytest.mark.parametrize("binarization", ["dynamic", "none"])
def test_another_seed_is_another_training(small, digits, binarization):
    """With equal initial weights, `train.seed` decides the order, the noise and the binarization of a training.
    It does not change the validation."""
    found = []
    for seed in (0, 0, 1):
        config = small(train=STILL | {"seed": seed, "epochs": 1})
        torch.manual_seed(0)
        fit = training.Fit(model.VAE(config.model), config.train)
        found += run((fit, *digits.images[: SIZE + 100].split([SIZE, 100])), binarization)
    one, same_seed, other = found
    assert one == same_seed
    assert one.train_neg_elbo_nats != other.train_neg_elbo_nats
    assert one.val_neg_elbo_nats == other.val_neg_elbo_nats


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"prior": "mixture", "precision": "bf16", "augmentation": 0.5},
        {"prior": "flow", "gradient_clip": 1.0, "schedule": "constant", "prior_epochs": 2},
        {"architecture": "conv", "precision": "bf16"},
        {"prior": "mixture", "prior_epochs": 1, "refine_epochs": 2, "refine_importance_samples": 3},
    ],
    ids=["plain", "mixture", "flow", "conv", "refined"],
)
def test_resumed_after_each_epoch_is_uninterrupted(start, other):
    """A training that is resumed from the checkpoint of any epoch ends with the same bits.
    It starts with other weights and another generator, so everything must come from the checkpoint."""
    options = other | {"epochs": 3}
    whole = start(**options)
    expected, checkpoints = [], []
    for record in training.fit(*whole, "dynamic"):
        expected.append(record)
        file = io.BytesIO()
        torch.save(whole[0].state_dict(), file)
        checkpoints.append(file.getvalue())
    assert len(expected) == 3 + other.get("prior_epochs", 0) + other.get("refine_epochs", 0)
    for epoch, checkpoint in enumerate(checkpoints, start=1):
        resumed = start(seed=77, **options)
        for generator in resumed[0].streams.values():
            generator.manual_seed(77)
        assert not same(resumed[0].model, whole[0].model)
        resumed[0].load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
        assert run(resumed) == expected[epoch:]
        assert same(resumed[0].model, whole[0].model)


def test_loss_falls(small, digits):
    """In a few epochs on the bundled digits, the loss falls from one bit per pixel to well below `blind`.
    `blind` is the loss of the best decoder without latents, which gives each pixel its mean over the images."""
    config = small(
        model={"encoder": [128], "decoder": [128], "latent_dim": 10},
        train={"epochs": 8, "learning_rate": 0.005, "warmup_steps": 10},
    )
    torch.manual_seed(0)
    fit = training.Fit(model.VAE(config.model), config.train)
    train, validation = data.split_validation(digits.images, 200)
    before = training.validate(fit.model, validation, "dynamic")
    records = list(training.fit(fit, train, validation, "dynamic"))
    assert before == pytest.approx(784 * math.log(2), rel=0.03)
    mean, x = data.unit(train).mean(dim=0).clamp(0.001, 0.999), data.unit(validation)
    blind = -(torch.xlogy(x, mean) + torch.xlogy(1 - x, 1 - mean)).sum(dim=1).mean().item()
    assert blind < 0.75 * before
    for loss in (records[-1].train_neg_elbo_nats, records[-1].val_neg_elbo_nats):
        assert loss < blind - 50
    assert records[-1].rate_nats > 5
    losses = [record.val_neg_elbo_nats for record in records]
    assert all(later < earlier for earlier, later in pairwise(losses))


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_starting_at_the_mean(vae, digits, architecture):
    """A decoder with weights of zero gives each pixel its mean over the images, but at least 0.001."""
    network = vae(architecture=architecture)
    training.start_at_mean(network, digits.images)
    with torch.no_grad():
        for name, parameter in network.decode.named_parameters():
            if parameter is not network.decode.bias:
                assert parameter.abs().max() > 0, name
                parameter.zero_()
        means = torch.sigmoid(network.decode(torch.zeros(1, 3)))[0]
    expected = (digits.images.double() / 255).mean(dim=0).clamp(0.001, 0.999)
    assert expected.min() == 0.001  # a corner is always black
    torch.testing.assert_close(means.double(), expected, rtol=1e-4, atol=1e-6)
    assert network.decode.bias.requires_grad


def test_the_seed_decides_a_new_model(small, digits):
    first, again, other = (training.start(small(train={"seed": seed}), digits.images).model for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_initial_bias(small, digits):
    """`data-mean` starts at the mean image. `default` keeps torch's initial bias, which is at most 1 / sqrt(16)."""
    mean, default = (
        training.start(small(train={"initial_bias": name}), digits.images).model.decode.bias
        for name in ("data-mean", "default")
    )
    torch.testing.assert_close(mean.sigmoid(), data.unit(digits.images).mean(dim=0).clamp(0.001, 0.999))
    assert 0 < default.abs().max() <= 0.25


def test_sections_in_the_key_of_a_checkpoint(script, small, digits_folder, tmp_path, monkeypatch):
    """A killed training is not resumed if one of these sections, or the kind of device, has changed."""

    def stop(sections, _files):
        raise InputError(sections)

    monkeypatch.setattr(script.params, "load", lambda _: small())
    monkeypatch.setattr(script.checkpoint, "training_key", stop)
    none = tmp_path / "none"
    with pytest.raises(InputError) as caught:
        script.main(tmp_path, digits_folder, model=none, curves=none, validation=none, run=none)
    read, device = str(caught.value).splitlines()
    assert json.loads(read).keys() == {"data", "model", "train"}
    assert device == "cpu"


def test_records(start):
    """There is one record for each epoch, counted from 1, with the columns of metrics/train.csv."""
    records = run(start(epochs=3))
    assert [record.epoch for record in records] == [1, 2, 3]
    for record in records:
        assert tuple(asdict(record)) == training.COLUMNS
        assert record.train_neg_elbo_nats == pytest.approx(record.rate_nats + record.distortion_nats, rel=1e-5)
        assert record.rate_nats > 0
        assert record.distortion_nats > 0


def test_train_loss_is_the_mean_over_images(small, digits):
    """If no weight changes, the loss of an epoch is the initial loss. A small batch counts by its size."""
    config = small(train=STILL | {"epochs": 1, "batch_size": 64, "kl_warmup_epochs": 0.0})
    torch.manual_seed(0)
    fit = training.Fit(model.VAE(config.model), config.train)
    grey = digits.images[:65].clone()
    grey[:64] = 0  # the last image differs, and is a batch alone: a mean of batch means would be far off
    with torch.no_grad():
        fit.model.decode.layers[-1].bias.fill_(-3.0)
    (record,) = training.fit(fit, grey, grey, "none")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        parts = [training.objective.elbo_terms(fit.model, data.unit(grey), generator) for _ in range(50)]
    totals = torch.stack([(rate + distortion).mean() for rate, distortion in parts]).double()
    assert abs(record.train_neg_elbo_nats - totals.mean()) < 5 * totals.std() * math.sqrt(1 + 1 / 50)
    assert record.val_neg_elbo_nats == pytest.approx(record.train_neg_elbo_nats, abs=10 * totals.std().item())


def test_every_image_is_used_once_in_an_epoch(start, monkeypatch):
    """Each epoch takes all images in a new order. The last batch is smaller."""
    fit, train, validation = start(epochs=2)
    train = torch.arange(SIZE, dtype=torch.int32)[:, None].expand(SIZE, PIXELS)
    seen: list[torch.Tensor] = []
    inputs = training.inputs

    def watched(grey, binarization, generator):
        if grey.dtype == torch.int32:
            seen.append(grey[:, 0])
            grey = torch.zeros(grey.shape, dtype=torch.uint8)
        return inputs(grey, binarization, generator)

    monkeypatch.setattr(training, "inputs", watched)
    assert len(run((fit, train, validation))) == 2
    assert [len(batch) for batch in seen] == [64, 64, 64, 64, 44] * 2
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(SIZE))
    assert not torch.equal(first, second)
    assert not torch.equal(first, first.sort().values)


def test_inputs(digits):
    """`dynamic` draws new bits each time. `none` gives the grey values."""
    grey, generator = digits.images[:20], torch.Generator().manual_seed(0)
    first, second = (training.inputs(grey, "dynamic", generator) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    assert torch.equal(training.inputs(grey, "none", generator), grey.float() / 255)


def test_augmentation_falls_to_zero(start, monkeypatch):
    """The share of augmented training images falls to zero in equal steps. Validation images are not augmented."""
    fit, train, validation = start(epochs=2, augmentation=0.5)
    shares, augment = [], training.augmentation.augment

    def watched(grey, share, generator):
        shares.append(share)
        assert not (grey[:, None] == validation[None]).all(dim=2).any()
        return augment(grey, share, generator)

    monkeypatch.setattr(training.augmentation, "augment", watched)
    run((fit, train, validation))
    assert shares == pytest.approx([0.5 * (1 - step / 10) for step in range(10)])
    plain = start(epochs=2)
    run(plain)
    assert not same(fit.model, plain[0].model)


def test_validation_is_the_same_each_time(start):
    """The same model has the same validation loss, bit for bit. Another order of the images gives them other noise."""
    fit, _, validation = start()
    one = training.validate(fit.model, validation, "dynamic")
    torch.rand(5)
    assert training.validate(fit.model, validation, "dynamic") == one
    assert training.validate(fit.model, validation.flip(0), "dynamic") != one


def test_validation_does_not_touch_the_training(start):
    """Another validation split gives the same weights."""
    one, other = start(epochs=2), start(epochs=2)
    run(one)
    run((other[0], other[1], other[2][:10]))
    assert same(one[0].model, other[0].model)


def test_every_parameter_moves(start):
    """Two epochs change every tensor of encoder, decoder and prior, with both objectives and both optimizers."""
    for prior, architecture, samples, optimizer in [
        ("standard-normal", "mlp", 1, "adam"),
        ("mixture", "conv", 1, "muon"),
        ("flow", "mlp", 3, "muon"),
    ]:
        fit, *images = start(
            prior=prior, architecture=architecture, epochs=2, importance_samples=samples, optimizer=optimizer
        )
        before = {name: tensor.clone() for name, tensor in fit.model.state_dict().items()}
        run((fit, *images))
        for name, tensor in fit.model.state_dict().items():
            assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_epochs_of_the_prior(start, prior):
    """The last epochs train the prior. The networks stay the same bit for bit."""
    fit, *images = start(prior=prior, epochs=3, prior_epochs=4, importance_samples=2, seed=1)
    records, states = [], []
    for record in training.fit(fit, *images, "dynamic"):
        records.append(record)
        states.append({name: tensor.clone() for name, tensor in fit.model.state_dict().items()})
    assert [record.epoch for record in records] == list(range(1, 8))
    for name, tensor in states[2].items():
        assert torch.equal(tensor, states[-1][name]) != name.startswith("prior"), name
        assert not torch.equal(tensor, states[1][name]), name
    whole, last = records[2], records[-1]
    assert last.lr == 0
    assert whole.distortion_nats == last.distortion_nats
    assert last.train_neg_elbo_nats == pytest.approx(last.rate_nats + last.distortion_nats, abs=0.01)
    assert last.rate_nats < whole.rate_nats
    assert last.val_neg_elbo_nats < whole.val_neg_elbo_nats


def test_a_prior_without_parameters_has_no_epochs(start):
    assert run(start(prior="standard-normal", prior_epochs=2)) == run(start(prior="standard-normal"))


def test_refined_on_many_samples(start, monkeypatch):
    """After the epochs of the prior, the whole model is trained again, with the larger K and without augmentation."""
    taken = []
    loss, moved = objective.importance_weighted_loss, augmentation.augment
    monkeypatch.setattr(
        objective,
        "importance_weighted_loss",
        lambda model, x, samples, *rest: taken.append((samples, len(x))) or loss(model, x, samples, *rest),
    )
    shares = []
    monkeypatch.setattr(
        augmentation, "augment", lambda grey, share, *rest: shares.append(share) or moved(grey, share, *rest)
    )
    monkeypatch.setattr(training, "DECODED_AT_ONCE", 400)
    options = {"importance_samples": 2, "refine_importance_samples": 20, "augmentation": 0.5}
    fit, *images = start(prior="mixture", epochs=1, prior_epochs=1, refine_epochs=1, **options)
    states = []
    for _ in training.fit(fit, *images, "dynamic"):
        states.append({name: tensor.clone() for name, tensor in fit.model.state_dict().items()})
    assert not any(torch.equal(tensor, states[1][name]) for name, tensor in states[2].items())
    batches = [64, 64, 64, 64, 44]
    parts = [20, 20, 20, 4, 20, 20, 20, 4, 20, 20, 20, 4, 20, 20, 20, 4, 20, 20, 4]
    assert taken == [(2, size) for size in batches] + [(20, size) for size in parts]
    assert all(share > 0 for share in shares[:5])
    assert not any(share > 0 for share in shares[5:])


def test_gradients_in_parts_sum_to_the_gradient_of_the_batch(start, monkeypatch):
    """The posteriors have no noise here, so the sum over the parts of a batch equals the whole up to rounding."""
    fit, train, _ = start(prior="mixture")
    size = fit.model.config.latent_dim
    with torch.no_grad():
        fit.model.encode.layers[-1].bias[size:] = -60  # log-variances
        fit.model.encode.layers[-1].weight[size:] = 0
    x = data.unit(train[:50])
    found = []
    for at_once in (2048, 40):
        monkeypatch.setattr(training, "DECODED_AT_ONCE", at_once)
        fit.model.zero_grad(set_to_none=True)
        terms = fit._gradients(x, Step(1.0, 1.0, samples=4))
        found.append(
            [terms, *(p.grad.clone() for p in [*fit.model.decode.parameters(), *fit.model.prior.parameters()])]
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_refining_lowers_the_bound(small, digits):
    """After the same training, refining with many samples lowers the bound more than refining with one sample."""
    bounds = []
    for samples in (1, 30):
        config = small(
            model={"encoder": [128], "decoder": [128], "latent_dim": 10},
            train={"epochs": 30, "refine_epochs": 10, "refine_importance_samples": samples, "refine_rate": 0.3},
        )
        torch.manual_seed(0)
        fit = training.Fit(model.VAE(config.model), config.train)
        train, validation = data.split_validation(digits.images, 200)
        list(training.fit(fit, train, validation, "dynamic"))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            found = metrics.over_images(fit.model, data.binarize(validation, generator), 200, generator, "")
        bounds.append(found.nll.mean().item())
    few, many = bounds
    assert many < few - 0.5


def test_gradients_are_clipped(start):
    """With gradient_clip, no gradient has a larger norm. Without it, some do."""

    def norms(**train: object) -> list[float]:
        fit, *images = start(epochs=1, **train)
        found: list[float] = []
        step = fit.optimizers[0].step

        def watched(factor: float) -> None:
            found.append(torch.stack([p.grad.norm() for p in fit.model.parameters()]).norm().item())
            step(factor)

        fit.optimizers[0].step = watched
        run((fit, *images))
        return found

    assert max(norms()) > 1
    assert max(norms(gradient_clip=0.5)) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_divergence_is_an_error(start, schedule):
    """A loss that is not finite ends the training with an error that names the way out. It yields no record."""
    epochs = training.fit(*start(learning_rate=1e8, schedule=schedule, warmup_steps=0, epochs=5), "dynamic")
    records = []
    with pytest.raises(InputError, match=r"diverged.*train\.learning_rate.*train\.gradient_clip"):
        records.extend(epochs)
    assert all(math.isfinite(record.train_neg_elbo_nats + record.val_neg_elbo_nats) for record in records)
    assert len(records) < 5


def test_a_validation_that_is_not_finite_is_an_error(start, monkeypatch):
    """It is an error even if the training loss is finite."""
    monkeypatch.setattr(training, "validate", lambda *_: math.nan)
    with pytest.raises(InputError, match="epoch 1 is not finite"):
        run(start(epochs=1))


def test_collapse_is_reported(start):
    """A training whose latents carry nothing gets a warning. A healthy training gets none."""
    healthy = run(start(epochs=30, kl_warmup_epochs=0.0))[-1]
    assert training.collapse(healthy) is None
    collapsed = run(start(epochs=1, kl_warmup_epochs=0.0, learning_rate=0.0))[-1]
    assert collapsed.rate_nats < training.COLLAPSED_NATS
    assert "train.warmup_steps" in training.collapse(collapsed)


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("muon", 0.02)])
def test_learning_rates(start, optimizer, rate):
    """The rates of the networks follow the schedule over `epochs`, the rates of the prior over `prior_epochs` too.
    Both start again at a lower rate when the model is refined. A record has the last rate of the networks' matrices."""
    options = {"schedule": "cosine", "learning_rate": 0.01, "muon_learning_rate": 0.02, "optimizer": optimizer}
    parts = {"epochs": 2, "prior_epochs": 2, "refine_epochs": 1, "refine_rate": 0.2, "warmup_steps": 3}
    fit, *images = start(prior="mixture", **options, **parts)
    applied: dict[str, list[float]] = {"networks": [], "prior": []}

    def watch(name: str, optimizer: optimizers.Optimizer) -> None:
        step = optimizer.step

        def watched(factor: float) -> None:
            applied[name].append(factor)
            step(factor)

        optimizer.step = watched

    watch("networks", fit.network_optimizers[0])
    watch("prior", fit.prior_optimizers[0])
    records = run((fit, *images))
    expected = [optimizers.rate_factor("cosine", step / 10, step, 3) for step in range(10)]
    refined = [0.2 * optimizers.rate_factor("cosine", step / 5, step, 3) for step in range(5)]
    assert applied["networks"] == pytest.approx(expected + refined, rel=1e-9)
    of_prior = [optimizers.rate_factor("cosine", step / 20, step, 3) for step in range(20)]
    assert applied["prior"] == pytest.approx(of_prior + refined)
    last = [rate * share for share in (expected[4], expected[9], 0, 0, refined[4])]
    assert [record.lr for record in records] == pytest.approx(last, rel=1e-5)


def test_weight_of_the_rate_is_in_no_record(start):
    """Records have the ELBO with the full rate, even at the first step, where the objective weighs it by zero."""
    weighted, plain = (start(epochs=1, kl_warmup_epochs=epochs, **STILL) for epochs in (1000.0, 0.0))
    assert run(weighted) == run(plain)
