"""Stage `evaluate`: bounds on the test split, and pictures of what the model has learned."""

from vae.runtime import command, cores, files

from pathlib import Path

import torch

from vae import data, device, model
from vae.errors import InputError
from vae.evaluation import metrics, plots
from vae.params import load

EXAMPLES = 12  # columns of originals and their reconstructions
TRAVERSED = 10  # latents with the most nats
STEPS = 11  # images of a traversal
PARTS = ("rate_nats", "distortion_nats")


def main(params: Path, data_folder: Path, model_file: Path, *, result: Path, pictures: Path) -> None:
    config = load(params)
    where = device.setup(config.train)
    print(device.explain(config.evaluate.precision, where), flush=True)
    vae = model.load(model_file, where)
    test = data.load(data_folder, "t10k")
    grey = test.images.to(where)
    train, _ = data.split_validation(data.load(data_folder, "train").images, config.data.validation)
    train = train[: len(grey)].to(where)

    precision = device.precision(config.evaluate.precision, where)
    with cores.turn(config.train.threads), device.autocast(where, precision):
        values, curve = metrics.evaluate(vae, grey, train, config.evaluate)
    if doubt := metrics.doubt(values):
        raise InputError(f"{result} is not written: {doubt}")
    described = {"data_name": config.data.name, "binarization": config.data.binarization}  # others do not compare
    files.write_json(result, values | described | {"device": where.type, "precision": precision})
    files.write_csv(pictures / "bound.csv", metrics.CURVE, curve)
    files.write_csv(pictures / "rate_distortion.csv", PARTS, [[values[name] for name in PARTS]])
    draw(vae, data.unit(grey), test.labels, pictures)
    print(
        f"neg-ELBO {values['neg_elbo_nats']:.2f} nats, NLL <= {values['nll_iw_nats']:.2f} "
        f"(K={values['importance_samples']}), {values['active_units']} active latents, {values['test_images']} test "
        f"images of {config.data.name}"
    )


@torch.no_grad()
def draw(vae: model.VAE, x: torch.Tensor, labels: torch.Tensor, pictures: Path) -> None:
    """Draws reconstructions, traversals and the latent space, and writes the nats in each latent, largest first."""
    mu, logvar = metrics.posterior(vae, x)
    kl = metrics.latent_kl(mu, logvar)
    pairs = torch.cat([x[:EXAMPLES], vae.means(mu[:EXAMPLES])])
    rows = metrics.traversals(vae, mu, kl.argsort(descending=True)[:TRAVERSED], STEPS)  # (L, S, P)
    plots.save_grid(pictures / "reconstructions.png", pairs.cpu().numpy(), EXAMPLES)
    plots.save_grid(pictures / "traversals.png", rows.flatten(0, 1).cpu().numpy(), STEPS)
    plots.save_latent_space(pictures / "latent_space.png", mu.cpu().numpy(), labels.numpy())
    nats = enumerate(kl.sort(descending=True).values.tolist(), start=1)
    files.write_csv(pictures / "latents.csv", ("latent", "nats"), nats)


if __name__ == "__main__":
    command.run(main)
