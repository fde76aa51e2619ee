"""Means over a data set: compared with quadrature, in chunks, and with the keys of metrics/evaluation.json."""

import hashlib
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from pipeline import evaluate as script
from vae import data, model, objective
from vae.errors import InputError
from vae.evaluation import metrics
from vae.idx import PIXELS
from vae.params import Evaluate

MEANS = [
    "neg_elbo_nats",
    "fitted_neg_elbo_nats",
    "nll_iw_nats",
    "rate_nats",
    "distortion_nats",
    "neg_elbo_grey_nats",
    "effective_sample_size",
]
OTHERS = ["importance_samples", "active_units", "bits_per_dim", "test_images", "binarization_sha256"]


def settings(samples: int, grey_samples: int, seed: int) -> Evaluate:
    return Evaluate(seed=seed, importance_samples=samples, grey_samples=grey_samples, precision="fp32")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def binary():
    """Six binary images, float64."""
    return torch.bernoulli(torch.full((6, PIXELS), 0.4, dtype=torch.float64), generator=generator(7))


@pytest.fixture
def grey():
    """Forty grey images, with some black and some white pixels."""
    images = torch.randint(-100, 356, (40, PIXELS), generator=generator(8))
    return images.clamp(0, 255).to(torch.uint8)


def definitions(rate: torch.Tensor, distortion: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The results of `metrics.bounds`, from all samples at once. (B, K), (B, K) -> (B,) each, and the curve (B, M)."""
    log_w = -(rate + distortion)
    share = torch.softmax(log_w, dim=1)  # w / sum_k w
    nll = torch.arange(1, log_w.shape[1] + 1, dtype=torch.float64).log() - torch.logcumsumexp(log_w, dim=1)  # (B, K)
    marked = [count - 1 for count in {1, 2, 5, 10, 20, log_w.shape[1]} if count <= log_w.shape[1]]
    curve = nll[:, sorted(marked)]
    return rate.mean(dim=1), distortion.mean(dim=1), nll[:, -1], 1 / share.square().sum(dim=1), curve


@torch.no_grad()
@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_importance_weighted_bound_against_quadrature(plane, log_likelihood, binary, float64, prior):
    """With many samples the bound of each image is -log p(x), within 5 standard errors.
    The standard error of the log of a mean is the relative deviation of w, divided by sqrt K."""
    model, samples = plane(prior), 6000
    expected = -log_likelihood(model, binary)
    nll = metrics.bounds(model, binary, samples, generator()).nll
    _, rate, distortion = objective.log_weights(model, binary, model.encode(binary), 1000, generator(1))
    w = torch.softmax(-(rate + distortion), dim=1) * 1000  # divided by their mean
    stderr = w.std(dim=1) / math.sqrt(samples)
    assert (stderr < 0.1).all()
    assert ((nll - expected).abs() < 5 * stderr).all()
    assert (((rate + distortion).mean(dim=1) - expected) > 10 * stderr).all()  # the ELBO is another number


@torch.no_grad()
def test_bound_tightens_with_more_samples(plane, log_likelihood, binary, float64):
    """E[nll] does not rise with K (Burda et al. 2016, theorem 1), within 4 standard errors over repeated draws."""
    model, repeats = plane("standard-normal"), 60
    draws = {}
    for samples in (1, 2, 5, 20, 100):
        x = binary.repeat(repeats, 1)
        nll = metrics.bounds(model, x, samples, generator(samples)).nll
        draws[samples] = nll.view(repeats, len(binary)).mean(dim=1)
    bounds = [(nll.mean().item(), nll.std().item() / math.sqrt(repeats)) for nll in draws.values()]
    for (few, few_error), (more, more_error) in pairwise(bounds):
        assert more < few + 4 * math.hypot(few_error, more_error)
    assert bounds[-1][0] < bounds[0][0] - 4 * math.hypot(bounds[0][1], bounds[-1][1])
    exact = -log_likelihood(model, binary).mean().item()
    assert bounds[-1][0] > exact - 4 * bounds[-1][1]


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 2, 7, 5000])
def test_bound_with_the_exact_posterior(linear_gaussian, float64, samples):
    """Every weight is p(x). So the bound is -log p(x) and the effective sample size is K, up to float64 rounding."""
    model = linear_gaussian()
    found = metrics.bounds(model, model.x, samples, generator())
    torch.testing.assert_close(-found.nll, model.log_p_x, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.rate + found.distortion, -model.log_p_x, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.effective_sample_size, torch.full((len(model.x),), float(samples)))


@torch.no_grad()
@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.3), (0.7, 1.3), (-0.5, 1.0)])
def test_bound_with_another_posterior(linear_gaussian, float64, shift, stretch):
    """The bound of each image is within 5 standard errors of -log p(x), the errors of the log of a mean."""
    model, samples = linear_gaussian(shift, stretch), 40000
    nll = metrics.bounds(model, model.x, samples, generator()).nll
    _, rate, distortion = objective.log_weights(model, model.x, model.encode(model.x), samples, generator(1))
    w = torch.exp(-(rate + distortion) - model.log_p_x[:, None])  # their mean is 1
    stderr = w.std(dim=1) / math.sqrt(samples)
    assert (stderr < 0.02).all()
    assert ((nll + model.log_p_x).abs() < 5 * stderr).all()


@torch.no_grad()
def test_bound_is_above_the_truth_and_tightens(linear_gaussian, float64):
    """The mean over repeated draws falls with K towards -log p(x), and not below it by 4 standard errors."""
    model, repeats = linear_gaussian(0.7, 1.3), 1500
    excess = []
    for samples in (1, 3, 10, 100):
        nll = metrics.bounds(model, model.x.repeat(repeats, 1), samples, generator(samples)).nll
        above = (nll + model.log_p_x.repeat(repeats)).view(repeats, -1).mean(dim=1)  # (repeats,)
        excess.append((above.mean().item(), above.std().item() / math.sqrt(repeats)))
    for (few, few_error), (more, more_error) in pairwise(excess):
        assert more < few - 4 * math.hypot(few_error, more_error)
    assert excess[-1][0] > -4 * excess[-1][1]
    assert excess[-1][0] < 0.05 * excess[0][0]


@torch.no_grad()
def test_effective_sample_size_against_its_expectation(linear_gaussian, float64):
    """With many samples ESS / K is 1 / E_q[(p(z|x) / q(z|x))^2], which two Gaussians have in closed form.
    If q has no shift and r times the deviation of the posterior, E is r^2 / sqrt(2 r^2 - 1) for each latent."""
    stretch, samples = 1.3, 200000
    model = linear_gaussian(0.0, stretch)
    share = metrics.bounds(model, model.x, samples, generator()).effective_sample_size / samples
    expected = (math.sqrt(2 * stretch**2 - 1) / stretch**2) ** model.prior.latent_dim
    torch.testing.assert_close(share, torch.full_like(share, expected), rtol=0.01, atol=0)


def test_weights_of_any_size(monkeypatch, plane, binary):
    """Log-weights may be far outside the range of exp. The log of the mean and the sample size are still right."""
    log_w = torch.tensor([[-2000.0, -2000.0, -2000.0], [900.0, -900.0, 900.0]], dtype=torch.float64)
    monkeypatch.setattr(metrics.objective, "log_weights", lambda *_: (None, -log_w, torch.zeros_like(log_w)))
    found = metrics.bounds(plane("standard-normal"), binary[:2], 3, generator())
    expected = torch.tensor([-2000.0, 900 + math.log(2 / 3)], dtype=torch.float64)
    torch.testing.assert_close(-found.nll, expected, rtol=1e-14, atol=0)
    effective = torch.tensor([3.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(found.effective_sample_size, effective, rtol=1e-11, atol=0)


@torch.no_grad()
def test_bounds_are_their_definitions(plane, binary, float64):
    """They are means of rate and distortion, the log of the mean weight, and Kong's effective sample size."""
    model = plane("mixture")
    found = metrics.bounds(model, binary, 7, generator(3))
    _, rate, distortion = objective.log_weights(model, binary, model.encode(binary), 7, generator(3))
    torch.testing.assert_close(tuple(found), definitions(rate, distortion), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_one_sample_is_the_elbo(plane, binary, float64, prior):
    """With K = 1 the two bounds are equal. With more samples the importance-weighted bound is below the neg-ELBO."""
    model = plane(prior)
    rate, distortion, nll, effective, _ = metrics.bounds(model, binary, 1, generator())
    torch.testing.assert_close(nll, rate + distortion, rtol=1e-13, atol=0)
    assert effective.tolist() == [1] * len(binary)
    rate, distortion, nll, effective, _ = metrics.bounds(model, binary, 30, generator())
    assert (nll < rate + distortion).all()
    assert ((effective > 1) & (effective < 30)).all()


@pytest.mark.parametrize("chunk", [1, 6, 11, 12, 13, 60, 10**6])
def test_chunks_of_samples(monkeypatch, plane, binary, chunk):
    """For any chunk, the sums equal the sums over all samples at once, up to float64 rounding."""
    rate, distortion = torch.rand(2, 6, 25, dtype=torch.float64, generator=generator()) * 800
    used = []

    def stored(_model, _x, _posterior, samples, _generator):
        part = slice(sum(used), sum(used) + samples)
        used.append(samples)
        return None, rate[:, part], distortion[:, part]

    monkeypatch.setattr(metrics.objective, "log_weights", stored)
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    found = metrics.bounds(plane("standard-normal"), binary, 25, generator())
    assert sum(used) == 25
    assert max(used) * len(binary) <= max(chunk, len(binary))
    assert len(set(used[:-1])) <= 1  # equal parts, and a remainder
    torch.testing.assert_close(tuple(found), definitions(rate, distortion), rtol=1e-11, atol=1e-11)


def test_images_are_encoded_once(monkeypatch, plane, binary):
    """An image is encoded once, even if its samples come in several chunks."""
    model, encoded = plane("mixture"), []
    model.encode.register_forward_hook(lambda _module, args, _output: encoded.append(len(args[0])))
    monkeypatch.setattr(metrics, "CHUNK", len(binary))
    metrics.bounds(model, binary, 5, generator())
    assert encoded == [len(binary)]


@torch.no_grad()
def test_chunks_of_images(monkeypatch, plane, float64):
    """With the same noise for each image, chunks of images equal one pass, up to float64 rounding."""
    model = plane("mixture")
    x = torch.bernoulli(torch.full((32, PIXELS), 0.4), generator=generator(7))
    whole = metrics.over_images(model, x, 8, generator(), "whole")
    monkeypatch.setattr(metrics, "CHUNK", 64)  # 8 images with 8 samples each
    parts = metrics.over_images(model, x, 8, generator(), "parts")
    for one, other in zip(whole, parts, strict=True):
        assert len(one) == 32
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 50, 300])
def test_chunks_give_the_same_means(monkeypatch, vae, grey, chunk, perturb):
    """Other chunks draw other noise. Every mean agrees within 5 standard errors of this noise."""
    model = perturb(vae())
    rows = {}
    for size in (4096, chunk):
        monkeypatch.setattr(metrics, "CHUNK", size)
        x = data.binarize(grey, generator(5))
        rows[size] = torch.stack(metrics.over_images(model, x, 40, generator(6), "")[:4]).double()
    for difference in rows[chunk] - rows[4096]:  # rate, distortion, nll and effective sample size, (N,) each
        assert 0 < difference.mean().abs() < 5 * difference.std() / math.sqrt(len(grey))


@torch.no_grad()
def test_posterior_in_chunks(monkeypatch, plane, binary, float64):
    """Any chunk gives mu and logvar of all images."""
    model = plane("standard-normal")
    monkeypatch.setattr(metrics, "CHUNK", 4)
    mu, logvar = metrics.posterior(model, binary)
    expected = model.encode(binary)
    torch.testing.assert_close((mu, logvar), expected, rtol=1e-13, atol=1e-14)


def test_means_and_their_standard_errors():
    """The error is the deviation with N - 1, divided by sqrt N. Sums are in float64."""
    large = torch.tensor([2.0**24, 1.0, 1.0, 1.0], dtype=torch.float32)
    result = metrics.means({"small": torch.tensor([1.0, 2.0, 3.0, 6.0]), "large": large})
    assert list(result) == ["small", "large", "small_stderr", "large_stderr"]
    assert result["small"] == pytest.approx(3, rel=1e-15)
    assert result["small_stderr"] == pytest.approx(math.sqrt(14 / 3 / 4), rel=1e-15)
    assert result["large"] == (2**24 + 3) / 4


def test_active_units():
    """A latent counts if the variance of its posterior mean is above 0.01. A large constant mean does not count."""
    wave = torch.tensor([1.0, -1.0] * 500, dtype=torch.float64)  # variance 1000 / 999
    scale = torch.tensor([1.0, 0.101, 0.099, 0.0, 30.0], dtype=torch.float64)
    mu = wave[:, None] * scale + torch.tensor([0.0, 0.0, 0.0, 50.0, 5.0])
    assert metrics.active_units(mu) == 3


def test_latent_kl_against_distributions():
    """E_x KL(q(z_d|x) || N(m_d, v_d)), where m_d and v_d are the moments of the aggregate posterior."""
    mu, logvar = (torch.randn(200, 3, dtype=torch.float64, generator=generator(seed)) for seed in (0, 1))
    mean, variance = mu.mean(dim=0), mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)
    q = Normal(mu, (0.5 * logvar).exp())
    expected = kl_divergence(q, Normal(mean, variance.sqrt())).mean(dim=0)
    torch.testing.assert_close(metrics.latent_kl(mu, logvar), expected, rtol=1e-12, atol=1e-12)


def test_a_latent_that_ignores_the_image_carries_nothing():
    """If q(z_d|x) is the same for all x, the latent has zero nats."""
    mu, logvar = torch.full((50, 2), 3.0, dtype=torch.float64), torch.full((50, 2), -1.0, dtype=torch.float64)
    torch.testing.assert_close(metrics.latent_kl(mu, logvar), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)


@torch.no_grad()
def test_traversals(plane, float64):
    """Each row changes one latent of the first image, from -3 to 3 deviations of that latent over all images."""
    model, mu = plane("standard-normal"), torch.randn(50, 2, generator=generator()) * torch.tensor([2.0, 0.5])
    images = metrics.traversals(model, mu, torch.tensor([1, 0]), 5)
    assert images.shape == (2, 5, PIXELS)
    for row, latent in enumerate((1, 0)):
        z = mu[:1].repeat(5, 1)
        z[:, latent] += torch.tensor([-3.0, -1.5, 0.0, 1.5, 3.0]) * mu[:, latent].std()
        torch.testing.assert_close(images[row], model.means(z), rtol=1e-12, atol=0)


@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_keys_of_an_evaluation(vae, grey, perturb, prior):
    """The evaluation has the keys of metrics/evaluation.json, and its numbers fit together."""
    result, curve = metrics.evaluate(perturb(vae(prior=prior)), grey, grey, settings(20, 10, 0))
    assert set(result) == {*MEANS, *(f"{name}_stderr" for name in MEANS), *OTHERS}
    assert all(math.isfinite(value) for value in result.values() if not isinstance(value, str))
    assert result["neg_elbo_nats"] == pytest.approx(result["rate_nats"] + result["distortion_nats"], rel=1e-12)
    assert result["nll_iw_nats"] < result["neg_elbo_nats"]
    assert result["bits_per_dim"] == pytest.approx(result["nll_iw_nats"] / (784 * math.log(2)), rel=1e-12)
    assert result["importance_samples"] == 20
    assert 1 < result["effective_sample_size"] < 20
    assert result["test_images"] == 40
    assert all(result[f"{name}_stderr"] > 0 for name in MEANS)
    assert [point[0] for point in curve] == [1, 2, 5, 10, 20]
    error = result["nll_iw_nats_stderr"]
    assert curve[-1][1:] == pytest.approx([result["nll_iw_nats"] + change for change in (0, -error, error)], rel=1e-12)
    assert curve[0][1] > curve[-1][1]


def test_evaluation_of_a_known_model(vae, grey):
    """With zero logits and q = p, every bound is 784 ln 2 without noise: one bit per pixel. No latent is active."""
    model = vae()
    with torch.no_grad():
        for layer in (model.encode.layers[-1], model.decode.layers[-1]):
            layer.weight.zero_()
            layer.bias.zero_()
    result, curve = metrics.evaluate(model, grey, grey, settings(5, 5, 0))
    for name in ("neg_elbo_nats", "nll_iw_nats", "distortion_nats", "neg_elbo_grey_nats"):
        assert result[name] == pytest.approx(784 * math.log(2), rel=1e-6)
        assert result[f"{name}_stderr"] < 1e-3
    assert result["rate_nats"] == 0
    assert result["effective_sample_size"] == pytest.approx(5, rel=1e-6)
    assert result["bits_per_dim"] == pytest.approx(1, rel=1e-6)
    assert result["active_units"] == 0
    assert [point[1] for point in curve] == pytest.approx([result["nll_iw_nats"]] * 3, rel=1e-6)


def test_the_seed_decides_the_evaluation(vae, grey, perturb):
    """Equal seeds give equal numbers bit for bit, for any state of the global generator. Another seed gives others."""
    model = perturb(vae(prior="mixture"))
    first = metrics.evaluate(model, grey, grey, settings(5, 3, 0))
    torch.manual_seed(99)
    assert metrics.evaluate(model, grey, grey, settings(5, 3, 0)) == first
    other = metrics.evaluate(model, grey, grey, settings(5, 3, 1))
    assert other[0]["nll_iw_nats"] != first[0]["nll_iw_nats"]
    assert other[0]["binarization_sha256"] != first[0]["binarization_sha256"]


def test_every_model_is_scored_on_the_same_bits(vae, grey):
    """Only the seed decides the binarization, for any model, prior and number of samples."""
    hashes = set()
    for seed, (prior, latent_dim, samples) in enumerate([("standard-normal", 3, 2), ("mixture", 2, 5), ("flow", 4, 1)]):
        model = vae(seed, prior=prior, latent_dim=latent_dim)
        hashes.add(metrics.evaluate(model, grey, grey, settings(samples, samples, 4))[0]["binarization_sha256"])
    x = data.binarize(grey, generator(4))
    assert hashes == {hashlib.sha256(x.bool().numpy().tobytes()).hexdigest()}


def test_samples_of_each_score(vae, grey, monkeypatch):
    """Binary and grey test images have the configured numbers of samples. Training images have one sample each."""
    taken, over_images = [], metrics.over_images

    def watched(model, images, samples, *rest):
        taken.append((len(images), samples))
        return over_images(model, images, samples, *rest)

    monkeypatch.setattr(metrics, "over_images", watched)
    metrics.evaluate(vae(), grey, grey[:30], settings(7, 3, 0))
    assert taken == [(40, 7), (40, 3), (30, 1)]


def test_the_script_uses_the_precision_of_its_section(small, vae, digits_folder, tmp_path, monkeypatch):
    def stop(_place, precision):
        raise InputError(precision)

    sections = {"train": {"precision": "bf16"}, "evaluate": {"precision": "fp32"}}
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # the folder of the locks of cores
    monkeypatch.setattr(script, "load", lambda _: small(**sections))
    monkeypatch.setattr(script.device, "autocast", stop)
    model.save(vae(), tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match="fp32"):
        script.main(tmp_path, digits_folder, tmp_path / "vae.safetensors", result=tmp_path, pictures=tmp_path)


def test_score_against_grey_values(vae, grey, perturb):
    """The score is the cross-entropy with grey values plus the KL divergence, within 5 standard errors."""
    model, count = perturb(vae()), 400
    x = data.unit(grey)
    result = metrics.evaluate(model, grey, grey, settings(1, count, 0))[0]
    with torch.no_grad():
        mu, logvar = model.encode(x)
        q = Normal(mu, (0.5 * logvar).exp())
        torch.manual_seed(5)
        logits = model.decode(q.sample((count,)))  # (K, N, P)
        target = x.expand_as(logits)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=-1).double()
        losses = losses.mean(dim=1) + kl_divergence(q, Normal(0.0, 1.0)).sum(dim=-1).double().mean()  # (K,)
    rates = kl_divergence(q, Normal(0.0, 1.0)).sum(dim=-1)  # the deviation of a sampled rate is about sqrt(2 KL)
    noise = math.sqrt(losses.var().item() / count * 2 + (2 * rates.mean().item() + 3) / (count * len(grey)))
    assert abs(result["neg_elbo_grey_nats"] - losses.mean().item()) < 5 * noise


@torch.no_grad()
def test_score_against_grey_values_is_the_mean_over_binarizations(plane, grey, float64):
    """The mean of -log p(x|z) over binarizations x, with z from the grey image, is the cross-entropy with its greys."""
    model, draws = plane("standard-normal"), 2000
    z = model.encode(data.unit(grey[:1]).double())[0]
    logits = model.decode(z)
    x = torch.cat([data.binarize(grey[:1], generator(seed)) for seed in range(draws)]).double()
    sampled = -objective.bernoulli_log_prob(x, logits.expand_as(x))
    exact = -objective.bernoulli_log_prob(grey[:1].double() / 255, logits)
    assert abs(sampled.mean() - exact) < 5 * sampled.std() / math.sqrt(draws)


SOUND = {
    "neg_elbo_nats": 90.0,
    "nll_iw_nats": 87.0,
    "rate_nats": 25.0,
    "effective_sample_size": 2.5,
    "neg_elbo_nats_stderr": 0.2,
    "rate_nats_stderr": 0.1,
    "effective_sample_size_stderr": 0.01,
    "importance_samples": 10,
    "active_units": 30,
    "test_images": 100,
}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, None),
        ({"rate_nats": -0.2}, None),  # within its error
        ({"rate_nats": -0.83}, "cannot be negative"),
        ({"nll_iw_nats": 90.5}, "above the neg-ELBO"),
        ({"active_units": 0}, "no latent is active"),
        ({"effective_sample_size": 1.0}, "mostly noise"),
        ({"neg_elbo_nats_stderr": 0.0}, "check that they differ"),
        ({"neg_elbo_nats_stderr": math.nan}, "neg_elbo_nats_stderr is nan"),
        ({"nll_iw_nats": math.inf}, "nll_iw_nats is inf"),
        ({"importance_samples": 1, "effective_sample_size": 1.0, "effective_sample_size_stderr": 0.0}, None),
    ],
)
def test_figures_that_cannot_be_are_named(wrong, words):
    found = metrics.doubt(SOUND | wrong)
    assert (found is None) if words is None else (words in found)
