"""One contender of the benchmark, in a separate process: for each line on stdin it runs once and prints seconds.

The contenders of a figure take turns, so that a change of the machine's speed affects all of them.
"""

import sys

if sys.argv[1:2] != ["epoch_origin"]:  # before torch is imported, because it sets up the process as in a stage
    from vae.runtime import command

    command.keep_freed_memory()

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from vae import data, device, model, training
from vae.evaluation import metrics
from vae.params import Params, load

ENCODER, DECODER = (784, 512, 256, 40), (20, 256, 512, 784)  # the tutorial's layers, with mu and logvar as one product
IMAGES, SAMPLES = 100, 1000  # in an evaluation


def products(batch: int, config: Params) -> Callable[[bool], None]:
    """The bare matrix products of the tutorial's network on a batch, in the precision of `train.precision`.

    Called with True, these are the forward products, and the gradients of all weights and of all activations except the
    images. Called with False, these are the forward products of the decoder.
    """
    chosen = device.precision(config.train.precision, torch.device("cpu"))
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32

    def tensors(widths: tuple[int, ...]) -> list[tuple[torch.Tensor, ...]]:
        shapes = [((outputs, inputs), (batch, inputs), (batch, outputs)) for inputs, outputs in pairwise(widths)]
        return [tuple(0.05 * torch.randn(shape).to(dtype) for shape in layer) for layer in shapes]

    encoder, decoder = tensors(ENCODER), tensors(DECODER)

    def run(backward: bool) -> None:
        for weight, x, _ in (encoder + decoder) if backward else decoder:
            x @ weight.T
        if backward:
            for index, (weight, x, gradient) in enumerate(encoder + decoder):
                gradient.T @ x
                if index:
                    gradient @ weight

    return run


def epoch_origin(_: Params, folder: Path) -> Callable[[], None]:
    """The tutorial's epoch."""
    from bench import origin

    loop = origin.Training(folder)

    def run() -> None:
        loop.epoch()

    return run


def epoch_ours(config: Params, folder: Path, count: int | None = None) -> Callable[[], None]:
    """An epoch of this library, with all images or with the first `count`."""
    images = data.load(folder, "train").images[:count]
    fit = training.Fit(model.VAE(config.model), config.train)

    def run() -> None:
        fit.records.clear()
        fit.run_epoch(images, images[:1], config.data.binarization)

    return run


def epoch_floor(config: Params, folder: Path) -> Callable[[], None]:
    """The matrix products of an epoch."""
    step, images = products(config.train.batch_size, config), data.load(folder, "train").images

    def run() -> None:
        for _ in range(-(-len(images) // config.train.batch_size)):
            step(True)

    return run


def evaluation_ours(config: Params, folder: Path, count: int = IMAGES, samples: int = SAMPLES) -> Callable[[], None]:
    """The importance-weighted bound of `count` images."""
    vae = model.VAE(config.model).eval()
    generator = torch.Generator().manual_seed(0)
    x = data.binarize(data.load(folder, "t10k").images[:count], generator)

    def run() -> None:
        with device.autocast(x.device, device.precision(config.evaluate.precision, x.device)):
            metrics.over_images(vae, x, samples, generator, "bound")

    return run


def evaluation_floor(config: Params, _: Path) -> Callable[[], None]:
    """The matrix products of the decoder for the same number of samples."""
    decode = products(metrics.CHUNK, config)

    def run() -> None:
        for _ in range(IMAGES * SAMPLES // metrics.CHUNK):
            decode(False)

    return run


CONTENDERS: dict[str, Callable[..., Callable[[], None]]] = {
    function.__name__: function
    for function in (epoch_origin, epoch_ours, epoch_floor, evaluation_ours, evaluation_floor)
}


def main(name: str, params: Path, folder: Path, *sizes: int) -> None:
    """Answers each line on stdin with the seconds of one run. `sizes` are passed on to the contender."""
    config = load(params)
    torch.set_num_threads(config.train.threads)
    torch.manual_seed(0)
    run = CONTENDERS[name](config, folder, *sizes)
    for _ in sys.stdin:
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
