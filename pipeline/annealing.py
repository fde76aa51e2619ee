"""Checks the importance-weighted bound by annealed importance sampling, on some test images and on images made."""

from vae import command

# isort: split
import json
from pathlib import Path

import torch

from vae import annealing, data, device, leaderboard, model
from vae.errors import InputError
from vae.params import load


def main(params: Path, data_folder: Path, model_path: Path, result: Path, readme: Path) -> None:
    """Bounds the likelihood from both sides."""
    config = load(params)
    place = device.choose(config.train.device)
    torch.set_num_threads(config.train.threads)
    vae = model.load(model_path, place).requires_grad_(False)  # only latents move; the weights' gradients cost more
    grey = data.load(data_folder, "t10k").images.to(place)
    if config.annealing.images > len(grey):
        raise InputError(f"{params}: annealing.images: {config.annealing.images}, but there are {len(grey)}; ask fewer")

    x = data.binarize(grey, torch.Generator(place).manual_seed(config.evaluate.seed))  # as the stage `evaluate` does
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(config.annealing.seed))
    chosen = x[order[: config.annealing.images].to(place)]
    values = annealing.evaluate(vae, chosen, config.annealing)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(values, indent=2) + "\n")
    readme.write_text(leaderboard.insert(readme.read_text(), annealing.table(values), "bounds"))
    print(f"{values['images']} test images, nats:\n{annealing.table(values)}")
    print(f"{values['images']} images that the model made, nats:")
    for name in ("simulated_upper_nats", "simulated_lower_nats", "simulated_gap_nats"):
        print(f"  {name:20} {values[name]:7.2f} ± {values[f'{name}_stderr']:.2f}")


if __name__ == "__main__":
    command.run(main)
