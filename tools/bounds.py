"""`make bounds`: checks the importance-weighted bound by annealed importance sampling."""

from vae.runtime import command, files

from pathlib import Path

import torch

from vae import data, device, model, streams
from vae.errors import InputError
from vae.evaluation import annealed_importance, readme
from vae.params import load


def main(params: Path, data_folder: Path, model_file: Path, *, result: Path, page: Path) -> None:
    config = load(params)
    where = device.setup(config.train)
    vae = model.load(model_file, where).requires_grad_(False)  # only latents need gradients
    grey = data.load(data_folder, "t10k").images.to(where)
    if (count := config.annealing.images) > len(grey):
        raise InputError(f"{params}: annealing.images is {count}, but the test split has {len(grey)} images; lower it")

    x = data.binarize(grey.cpu(), streams.binarization(config.evaluate.seed)).to(where)  # as in the stage `evaluate`
    order = torch.randperm(len(x), generator=streams.stream(config.annealing.seed, "annealing images"))
    chosen = x[order[:count].to(where)]
    values = annealed_importance.evaluate(vae, chosen, config.annealing)
    if doubt := annealed_importance.doubt(values):
        raise InputError(f"{result} is not written: {doubt}")
    files.write_json(result, values)
    table = readme.bounds(values)
    page.write_text(readme.insert(page.read_text(), table, "bounds"))
    print(f"{values['images']} test images, nats:\n{table}")


if __name__ == "__main__":
    command.run(main)
