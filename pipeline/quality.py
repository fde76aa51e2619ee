"""Stage `quality`: compares samples with test images (classifier features) and with their nearest training images."""

from vae.runtime import command, cores, files

from pathlib import Path

import torch

from vae import data
from vae.evaluation import classifier, plots, quality
from vae.model import load as load_model
from vae.params import load

EXAMPLES = 12  # samples in the picture, above their nearest training images


def main(params: Path, data_folder: Path, *, model: Path, network: Path, result: Path, picture: Path) -> None:
    config = load(params)
    torch.set_num_threads(config.train.threads)
    fitted, vae = classifier.load(network), load_model(model)
    test = data.load(data_folder, "t10k").images
    train, _ = data.split_validation(data.load(data_folder, "train").images, config.data.validation)
    with cores.turn(config.train.threads):
        measured = quality.measure(fitted, vae, train, test, config.quality)
    shown = min(EXAMPLES, len(measured.samples))
    pairs = torch.cat([measured.samples[:shown], measured.nearest[:shown]])
    plots.save_grid(picture, pairs.numpy(), shown)
    values = measured.figures
    hashes = {"classifier_sha256": files.sha256(network), "model_sha256": files.sha256(model)}
    files.write_json(result, values | hashes)
    print(
        f"Frechet distance {values['frechet_binary']:.2f} ± {values['frechet_binary_stderr']:.2f} "
        f"(training images {values['frechet_binary_train']:.2f}), "
        f"precision {values['precision_binary']:.2f}, recall {values['recall_binary']:.2f}"
    )


if __name__ == "__main__":
    command.run(main)
