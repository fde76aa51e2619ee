"""Annealed importance sampling from both sides, compared with closed forms and quadrature."""

import json
import math
import re

import pytest
import torch
import yaml

from tools import bounds as script
from vae import model, objective
from vae.errors import InputError
from vae.evaluation import annealed_importance
from vae.evaluation import readme as tables
from vae.idx import PIXELS
from vae.params import Annealing

pytestmark = pytest.mark.usefixtures("float64")
Q = (0.5, 1.15)  # shift and stretch of a q(z|x) that differs from the posterior


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**fields: object) -> Annealing:
    """A section with short chains. Arguments change its fields."""
    short = {"seed": 0, "images": 6, "chains": 8, "temperatures": 4, "leapfrog_steps": 3, "step_size": 0.4}
    return Annealing(**(short | {"importance_samples": [1, 3]} | fields))


def posterior_sample(gaussian, chains: int) -> torch.Tensor:
    """Exact samples of p(z|x). (B, C, D)."""
    mean, variance = gaussian.posterior(gaussian.x)
    eps = torch.randn(len(mean), chains, mean.shape[1], generator=generator(9))
    return mean[:, None] + variance.sqrt() * eps


def q_sample(path: annealed_importance.Path, chains: int) -> torch.Tensor:
    """Samples of q(z|x). (B, C, D)."""
    mu, logvar = (part.expand(-1, chains, -1) for part in (path.mu, path.logvar))
    return objective.sample_posterior(mu, logvar, generator(9))


def assert_mean_of_one(w: torch.Tensor) -> None:
    """The mean over the chains of each image is within 5 standard errors of 1, and the errors are small."""
    stderr = w.std(dim=1) / math.sqrt(w.shape[1])
    assert ((stderr > 0) & (stderr < 0.1)).all()
    assert ((w.mean(dim=1) - 1).abs() < 5 * stderr).all()


@pytest.mark.parametrize("temperatures", [2, 3, 10])
def test_weights_are_unbiased(linear_gaussian, temperatures):
    """E[w] is p(x) from t = 0 to 1, and 1 / p(x) from 1 to 0, for any number of temperatures."""
    gaussian, config, chains = linear_gaussian(*Q), settings(temperatures=temperatures), 8000
    path, there = annealed_importance.Path(gaussian, gaussian.x), annealed_importance.schedule(temperatures)
    log_w = annealed_importance.anneal(path, q_sample(path, chains), there, config, generator())
    assert_mean_of_one(torch.exp(log_w - gaussian.log_p_x[:, None]))
    log_w = annealed_importance.anneal(path, posterior_sample(gaussian, chains), there[::-1], config, generator())
    assert_mean_of_one(torch.exp(log_w + gaussian.log_p_x[:, None]))


def test_the_bounds_enclose_the_truth(linear_gaussian):
    """The mean log-weights are below and above log p(x), by 5 standard errors. More temperatures bring them closer."""
    gaussian, chains = linear_gaussian(*Q), 500
    path = annealed_importance.Path(gaussian, gaussian.x)
    starts = q_sample(path, chains), posterior_sample(gaussian, chains)
    gaps = {}
    for temperatures in (2, 6, 30):
        there, config = annealed_importance.schedule(temperatures), settings(temperatures=temperatures)
        log_w = annealed_importance.anneal(path, starts[0], there, config, generator())
        back_log_w = annealed_importance.anneal(path, starts[1], there[::-1], config, generator())
        lower, upper = (bound - gaussian.log_p_x[:, None] for bound in (log_w, -back_log_w))
        for side in (-lower, upper):
            assert side.mean() > 5 * side.std() / math.sqrt(side.numel())
        gaps[temperatures] = (upper.mean() - lower.mean()).item()
    assert gaps[6] < 0.5 * gaps[2]
    assert gaps[30] < 0.3 * gaps[6]


def test_with_the_exact_posterior_all_weights_are_equal(linear_gaussian):
    """If q is p(z|x), the weight of every chain is p(x), for any transitions."""
    gaussian = linear_gaussian()
    path, there = annealed_importance.Path(gaussian, gaussian.x), annealed_importance.schedule(5)
    for z, direction, sign in ((q_sample(path, 3), there, 1), (posterior_sample(gaussian, 3), there[::-1], -1)):
        log_w = annealed_importance.anneal(path, z, direction, settings(), generator())
        torch.testing.assert_close(log_w, sign * gaussian.log_p_x[:, None].expand(-1, 3), rtol=1e-11, atol=0)


@pytest.mark.parametrize("step_size", [0.3, 1.2])
@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_a_transition_keeps_its_density(linear_gaussian, t, step_size):
    """Exact samples of f_t, a Gaussian here, keep their mean, variance and correlations within 5 standard errors.
    Large steps make the dynamics inexact. Then the acceptance test corrects them."""
    gaussian, chains = linear_gaussian(*Q), 20000
    path = annealed_importance.Path(gaussian, gaussian.x[:1])
    mean, variance = gaussian.posterior(gaussian.x[:1])
    precision = (1 - t) * torch.exp(-path.logvar[0]) + t / variance  # (1, D)
    center = ((1 - t) * torch.exp(-path.logvar[0]) * path.mu[0] + t * mean / variance) / precision
    z = center + torch.randn(1, chains, mean.shape[1], generator=generator(1)) * precision.rsqrt()
    point = path.at(path.coordinates(z))
    config, noise = settings(step_size=step_size), generator(2)
    for _ in range(5):
        point = annealed_importance.transition(path, point, t, config, noise)
    moved = path.mu + torch.exp(0.5 * path.logvar) * point.eps
    share = (moved - z).ne(0).double().mean()
    assert share > 0.5  # most chains have moved
    scaled = ((moved - center) * precision.sqrt())[0]  # (C, D), still N(0, I)
    assert (scaled.mean(dim=0).abs() < 5 / math.sqrt(chains)).all()
    assert ((scaled.var(dim=0) - 1).abs() < 5 * math.sqrt(2 / chains)).all()
    assert ((torch.corrcoef(scaled.T) - torch.eye(scaled.shape[1])).abs() < 5 / math.sqrt(chains)).all()


def test_a_chain_finds_its_density(linear_gaussian):
    """From a distant start, chains reach the moments of p(z|x). A transition that never moves would fail here."""
    gaussian, chains = linear_gaussian(*Q), 5000
    path = annealed_importance.Path(gaussian, gaussian.x[:1])
    mean, variance = gaussian.posterior(gaussian.x[:1])
    point, noise = path.at(torch.full((1, chains, mean.shape[1]), 3.0)), generator()
    for _ in range(40):
        point = annealed_importance.transition(path, point, 1.0, settings(), noise)
    z = (path.mu + torch.exp(0.5 * path.logvar) * point.eps)[0]
    scaled = (z - mean) / variance.sqrt()
    assert (scaled.mean(dim=0).abs() < 5 / math.sqrt(chains)).all()
    assert ((scaled.var(dim=0) - 1).abs() < 5 * math.sqrt(2 / chains)).all()


def test_the_dynamics_are_reversible(linear_gaussian):
    """With the opposite momentum they return to the start."""
    gaussian = linear_gaussian(*Q)
    path = annealed_importance.Path(gaussian, gaussian.x)
    point = path.at(torch.randn(5, 3, 4, generator=generator()))
    momentum = torch.randn(5, 3, 4, generator=generator(1))
    there, end = annealed_importance.leapfrog(path, point, momentum, 0.6, settings())
    back, start = annealed_importance.leapfrog(path, there, -end, 0.6, settings())
    assert (there.eps - point.eps).abs().min() > 1e-3
    torch.testing.assert_close((back.eps, -start), (point.eps, momentum), rtol=1e-10, atol=1e-12)


def test_a_point_has_its_densities(linear_gaussian):
    """log f_t and its gradient agree with autograd through both densities."""
    gaussian = linear_gaussian(*Q)
    path = annealed_importance.Path(gaussian, gaussian.x)
    eps = torch.randn(5, 3, 4, generator=generator(), requires_grad=True)
    z = path.mu + torch.exp(0.5 * path.logvar) * eps
    log_q = objective.gaussian_log_prob(z, path.mu, path.logvar)
    log_joint = gaussian.log_prob(gaussian.x[:, None], gaussian.decode(z)) + gaussian.prior.log_prob(z)
    log_f = 0.7 * log_q + 0.3 * log_joint
    point = path.at(eps)
    torch.testing.assert_close(point.log_f(0.3), log_f.detach(), rtol=1e-12, atol=1e-12)
    (force,) = torch.autograd.grad(log_f.sum(), eps)
    torch.testing.assert_close(point.force(0.3), force, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(path.coordinates(z), eps, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_a_vae_against_quadrature(plane, log_likelihood, prior):
    """The mean weight of a VAE agrees with quadrature within 5 standard errors."""
    vae, config, chains = plane(prior), settings(temperatures=20), 300
    x = torch.bernoulli(torch.full((3, PIXELS), 0.4), generator=generator(7))
    with torch.no_grad():
        log_p_x = log_likelihood(vae, x)[:, None]
    path, there = annealed_importance.Path(vae, x), annealed_importance.schedule(config.temperatures)
    log_w = annealed_importance.anneal(path, q_sample(path, chains), there, config, generator())
    assert_mean_of_one(torch.exp(log_w - log_p_x))


@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_both_bounds_of_a_vae_against_quadrature(plane, log_likelihood, prior):
    """On images that the model made, the bounds enclose -log p(x), within 5 standard errors of the mean over images."""
    vae, config = plane(prior), settings(temperatures=20, chains=4)
    x, z = annealed_importance.simulate(vae, 30, generator(5))
    with torch.no_grad():
        nll = -log_likelihood(vae, x)
    above = annealed_importance.bound(vae, x, config, generator()) - nll
    below = nll - annealed_importance.bound(vae, x, config, generator(), exact=z)
    for side in (above, below):
        assert side.mean() > -5 * side.std() / math.sqrt(len(x))
        assert side.abs().mean() < 1


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_the_seed_decides_the_evaluation(vae, perturb, prior, architecture):
    """Every kind of model gives finite numbers in float32. Equal seeds give equal numbers bit for bit."""
    torch.set_default_dtype(torch.float32)
    network = perturb(vae(prior=prior, architecture=architecture)).requires_grad_(False)
    x = torch.bernoulli(torch.full((6, PIXELS), 0.4), generator=generator(7))
    first = annealed_importance.evaluate(network, x, settings())
    torch.manual_seed(99)
    assert annealed_importance.evaluate(network, x, settings()) == first
    assert annealed_importance.evaluate(network, x, settings(seed=1))["nll_ais_nats"] != first["nll_ais_nats"]
    weighted = first.pop("importance_weighted")
    assert all(math.isfinite(value) for part in (first, *weighted) for value in part.values())
    gap = first["simulated_upper_nats"] - first["simulated_lower_nats"]
    assert first["simulated_gap_nats"] == pytest.approx(gap, abs=1e-9)
    assert gap > -5 * first["simulated_gap_nats_stderr"]
    assert [part["importance_samples"] for part in weighted] == [1, 3]
    assert 1 == weighted[0]["effective_sample_size"] < weighted[1]["effective_sample_size"] <= 3
    for part in weighted:
        assert part["iw_minus_ais_nats"] == pytest.approx(part["nll_iw_nats"] - first["nll_ais_nats"], abs=1e-9)


def test_diverged_dynamics_are_refused(linear_gaussian):
    """A proposal with NaN or infinity is never accepted."""
    gaussian = linear_gaussian(*Q)
    path = annealed_importance.Path(gaussian, gaussian.x)
    point = path.at(torch.randn(5, 3, 4, generator=generator()))
    config = settings(step_size=1, leapfrog_steps=5).model_copy(update={"step_size": 1e200})
    moved = annealed_importance.transition(path, point, 1.0, config, generator())
    assert all(torch.equal(new, old) for new, old in zip(moved, point, strict=True))


@pytest.fixture
def files(tmp_path, root, vae):
    """A function that writes params.yaml with changed fields of `annealing`, and the paths of the script's files."""
    torch.set_default_dtype(torch.float32)
    model.save(vae(), tmp_path / "vae.safetensors")

    def params(**fields: object):
        tree = yaml.safe_load((root / "params.yaml").read_text())
        tree["annealing"] |= fields
        tree["train"] |= {"device": "cpu", "threads": 1}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "params.yaml"

    (tmp_path / "README.md").write_text("head\n<!-- bounds: begin -->\n<!-- bounds: end -->\ntail\n")
    return params, tmp_path / "vae.safetensors", tmp_path / "metrics/annealing.json", tmp_path / "README.md"


def test_the_script_writes_its_results(files, digits_folder, capsys):
    """The file has the numbers and their settings. The page has the table."""
    params, weights, result, readme = files
    changed = params(images=5, chains=2, temperatures=3, importance_samples=[1, 4])
    script.main(changed, digits_folder, weights, result=result, page=readme)
    values = json.loads(result.read_text())
    assert (values["images"], values["chains"], values["temperatures"]) == (5, 2, 3)
    assert f"{values['nll_ais_nats']:.2f}" in capsys.readouterr().out
    assert tables.bounds(values) in readme.read_text()
    assert tables.bounds(values).splitlines()[3].startswith("| 4 | ")


SOUND = {
    "nll_ais_nats": 81.0,
    "simulated_gap_nats": 0.06,
    "simulated_gap_nats_stderr": 0.02,
    "importance_weighted": [
        {"importance_samples": 50, "nll_iw_nats": 82.0, "iw_minus_ais_nats": 1.0, "iw_minus_ais_nats_stderr": 0.1},
        {"importance_samples": 5000, "nll_iw_nats": 80.9, "iw_minus_ais_nats": -0.1, "iw_minus_ais_nats_stderr": 0.1},
    ],
    "step_size": 0.3,
}


def changed(where: int | None, **values: float) -> dict:
    """The sound figures with changes in one of the importance-weighted bounds, or in the others."""
    rows = [row | (values if index == where else {}) for index, row in enumerate(SOUND["importance_weighted"])]
    return SOUND | {"importance_weighted": rows} | (values if where is None else {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SOUND, None),
        (changed(1, iw_minus_ais_nats=-0.4, nll_iw_nats=80.6), r"K=5000, 80\.60, is below the annealed one, 81\.00"),
        (changed(0, iw_minus_ais_nats=-0.4, nll_iw_nats=80.6), r"K=50, .*raise annealing\.temperatures"),
        (changed(1, iw_minus_ais_nats=-0.2), None),
        (changed(None, simulated_gap_nats=-0.1), r"upper bound is 0\.10 below the lower bound; raise annealing"),
        (changed(None, nll_ais_nats=math.nan), r"nll_ais_nats is not finite; lower annealing\.step_size"),
        (changed(0, nll_iw_nats=math.inf), "nll_iw_nats is not finite"),
    ],
)
def test_figures_that_cannot_be(values, message):
    doubt = annealed_importance.doubt(values)
    assert doubt is None if message is None else re.search(message, doubt)


def test_nothing_is_published_if_the_annealed_bound_is_the_looser_one(files, digits_folder, monkeypatch):
    """The error is one line. The file and the page of an earlier check stay."""
    params, weights, result, readme = files
    result.parent.mkdir()
    result.write_text("{}")
    page, bound = readme.read_text(), annealed_importance.bound
    monkeypatch.setattr(annealed_importance, "bound", lambda *given, **exact: bound(*given, **exact) + 20)
    few = params(images=5, chains=2, temperatures=3, importance_samples=[1, 4])
    with pytest.raises(InputError, match=r"annealing\.json is not written: the bound with K=") as caught:
        script.main(few, digits_folder, weights, result=result, page=readme)
    assert "\n" not in str(caught.value)
    assert (result.read_text(), readme.read_text()) == ("{}", page)


def test_the_published_check_is_sound(root):
    assert annealed_importance.doubt(json.loads((root / "metrics/annealing.json").read_text())) is None


def test_too_many_images(files, digits_folder):
    """The error names the key and the number of test images."""
    params, weights, result, readme = files
    with pytest.raises(InputError, match=r"annealing\.images is 5000, but the test split has \d+ images; lower it"):
        script.main(params(images=5000), digits_folder, weights, result=result, page=readme)
