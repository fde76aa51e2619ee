"""One contender of the benchmark, in a process of its own: for each line on stdin it runs once and prints seconds.

The contenders of a figure take turns, so that a drift of the machine's speed meets them all alike.
"""

import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from vae import data, device, metrics, model, training
from vae.params import Params, load

ENCODER, DECODER = (784, 512, 256, 40), (20, 256, 512, 784)  # the origin's layers; mu and logvar are one product
IMAGES, SAMPLES = 100, 1000  # of an evaluation


def products(batch: int, config: Params) -> Callable[[bool], None]:
    """The bare matrix products of the origin's network on a batch, in the precision that we train in.

    Called with True: forward, and the gradients of all weights and of all activations but the images'. With False:
    the decoder alone, forward.
    """
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32

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
    """Our epoch, of all images or of the first `count`."""
    images = data.load(folder, "train").images[:count]
    fit = training.Fit(model.VAE(config.model), config.train)

    def run() -> None:
        fit.epoch = 0
        fit.run_epoch(images, images[:1], config.data.binarization)

    return run


def epoch_floor(config: Params, folder: Path) -> Callable[[], None]:
    """The products of an epoch."""
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
        with device.autocast(x.device, config.evaluate.precision):
            metrics.over_images(vae, x, samples, generator, "bound")

    return run


def evaluation_floor(config: Params, _: Path) -> Callable[[], None]:
    """The decoder's products for as many samples."""
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
    """Answers each line on stdin with the seconds of one run; `sizes` where the contender takes any."""
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
