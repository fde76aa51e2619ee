"""Stage `generate`: new digits from the prior, and interpolations between digits of the validation split."""

from vae.runtime import command

from pathlib import Path

import torch
from safetensors.torch import save

from vae import data, device, model, prior, streams
from vae.errors import InputError
from vae.evaluation import plots
from vae.params import load

ROW = 10  # digits in the row with which the tutorial ends
STEPS = 12  # pictures of an interpolation, both ends included


@torch.no_grad()
def main(params: Path, data_folder: Path, model_file: Path, samples: Path) -> None:
    config = load(params)
    where = device.setup(config.train)
    vae = model.load(model_file, where)
    _, validation = data.split_validation(data.load(data_folder, "train").images, config.data.validation)
    ends = 2 * config.generate.interpolations
    if len(validation) < ends:
        raise InputError(
            f"{params}: generate.interpolations: {ends // 2} need {ends} validation images, and there are "
            f"{len(validation)}; lower it, or raise data.validation"
        )
    generator = streams.stream(config.generate.seed, "samples", where)
    count = config.generate.rows * config.generate.columns

    z = vae.prior.sample(max(count, ROW), generator)  # (N, D)
    means = vae.means(z)  # (N, P)
    pixels = torch.bernoulli(means, generator=generator).to(torch.uint8)  # (N, P)
    plots.save_grid(samples / "grid.png", means[:count].cpu().numpy(), config.generate.columns)
    plots.save_grid(samples / "row.png", means[:ROW].cpu().numpy(), ROW)
    # Unlike NumPy's own format, which is a ZIP file, it has the same bytes with every version of Python.
    (samples / "samples.safetensors").write_bytes(save({"z": z, "means": means, "pixels": pixels}))

    mu, _ = vae.encode(data.unit(validation[:ends].to(where)))  # (2 R, D)
    paths = prior.path(vae.prior, mu[::2], mu[1::2], STEPS).transpose(0, 1)  # (R, S, D)
    plots.save_grid(samples / "interpolations.png", vae.means(paths).flatten(0, 1).cpu().numpy(), STEPS)
    print(f"{count} digits in {samples / 'grid.png'}")


if __name__ == "__main__":
    command.run(main)
