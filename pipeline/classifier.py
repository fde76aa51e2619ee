"""Stage `classifier`: fits the classifier that stage `quality` measures with."""

from vae import command

# isort: split
import hashlib
import json
from pathlib import Path

import torch

from vae import classifier, cores, data
from vae.params import load


def main(params: Path, data_folder: Path, network_path: Path, result: Path) -> None:
    """Fits the classifier, on the CPU: the same weights on each machine of a kind."""
    config = load(params)
    torch.set_num_threads(config.classifier.threads)
    train, test = data.load(data_folder, "train"), data.load(data_folder, "t10k")
    images, val_images = data.split_validation(train.images, config.classifier.validation)
    labels, val_labels = data.split_validation(train.labels, config.classifier.validation)

    with cores.turn(config.classifier.threads):
        network = classifier.fit(images, labels, config.classifier)
        classifier.save(network, network_path)
        values = {
            "test_accuracy": classifier.accuracy(network, test.images, test.labels),
            "validation_accuracy": classifier.accuracy(network, val_images, val_labels),
            "sha256": hashlib.sha256(network_path.read_bytes()).hexdigest(),
        }
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(values, indent=2) + "\n")
    print(f"test accuracy {values['test_accuracy']:.4f}, validation {values['validation_accuracy']:.4f}")


if __name__ == "__main__":
    command.run(main)
