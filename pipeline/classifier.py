"""Stage `classifier`: fits the classifier that stage `quality` uses."""

from vae.runtime import command, cores, files

from pathlib import Path

import torch

from vae import data
from vae.evaluation import classifier
from vae.params import load


def main(params: Path, data_folder: Path, *, network: Path, result: Path) -> None:
    config = load(params)
    torch.set_num_threads(config.classifier.threads)
    train, test = data.load(data_folder, "train"), data.load(data_folder, "t10k")
    images, val_images = data.split_validation(train.images, config.classifier.validation)
    labels, val_labels = data.split_validation(train.labels, config.classifier.validation)

    with cores.turn(config.classifier.threads):
        fitted = classifier.fit(images, labels, config.classifier)
        classifier.save(fitted, network)
        accuracy = {
            "test_accuracy": classifier.accuracy(fitted, test.images, test.labels),
            "validation_accuracy": classifier.accuracy(fitted, val_images, val_labels),
        }
    files.write_json(result, accuracy | {"sha256": files.sha256(network)})
    print(
        f"test accuracy {accuracy['test_accuracy']:.4f}, validation {accuracy['validation_accuracy']:.4f} "
        f"({len(val_labels)} images)"
    )


if __name__ == "__main__":
    command.run(main)
