"""Stage `evaluate`: the bounds on the test split, and pictures of what the model has learned."""

from vae import command

# isort: split
import json
from pathlib import Path

import numpy as np
import torch

from vae import cores, data, device, metrics, model, plots
from vae.params import load

EXAMPLES = 12  # originals over reconstructions
TRAVERSED = 10  # latents, those that carry most
STEPS = 11  # of a traversal, from -3 to 3 deviations


def main(params: Path, data_folder: Path, model_path: Path, result: Path, pictures: Path) -> None:
    """Evaluates the model on the test images."""
    config = load(params)
    place = device.choose(config.train.device)
    torch.set_num_threads(config.train.threads)
    vae = model.load(model_path, place)
    test = data.load(data_folder, "t10k")
    grey = test.images.to(place)
    train, _ = data.split_validation(data.load(data_folder, "train").images, config.data.validation)
    train = train[: len(grey)].to(place)

    scored = config.evaluate
    with cores.turn(config.train.threads), device.autocast(place, scored.precision):
        values = metrics.evaluate(vae, grey, train, scored.importance_samples, scored.grey_samples, scored.seed)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(values, indent=2) + "\n")
    draw(vae, grey, test.labels.numpy(), pictures)
    print(
        f"neg-ELBO {values['neg_elbo_nats']:.2f} nats, NLL <= {values['nll_iw_nats']:.2f} "
        f"(K={values['importance_samples']}), {values['active_units']} active latents"
    )


@torch.no_grad()
def draw(vae: model.VAE, grey: torch.Tensor, labels: np.ndarray, pictures: Path) -> None:
    """Reconstructions, the latent space, the nats in each latent, and traversals."""
    x = data.unit(grey)
    mu, logvar = metrics.posterior(vae, x)
    kl = metrics.latent_kl(mu, logvar)

    def decoded(z: torch.Tensor) -> np.ndarray:
        return torch.sigmoid(vae.decode(z).float()).cpu().numpy()

    pairs = np.concatenate([x[:EXAMPLES].cpu().numpy(), decoded(mu[:EXAMPLES])])
    plots.save_grid(pictures / "reconstructions.png", pairs, EXAMPLES)

    most = kl.argsort(descending=True)[:TRAVERSED]
    offsets = torch.zeros(len(most), STEPS, mu.shape[1], device=mu.device)  # (latents, steps, D)
    for row, latent in enumerate(most):
        offsets[row, :, latent] = torch.linspace(-3, 3, STEPS, device=mu.device) * mu[:, latent].std()
    plots.save_grid(pictures / "traversals.png", decoded(mu[0] + offsets).reshape(-1, data.PIXELS), STEPS)

    plots.save_latent_space(pictures / "latent_space.png", mu.cpu().numpy(), labels)
    plots.save_latent_kl(pictures / "latent_kl.png", kl.cpu().numpy())


if __name__ == "__main__":
    command.run(main)
