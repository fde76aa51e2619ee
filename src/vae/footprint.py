"""How much memory a training needs. It is measured, so a new architecture, prior or optimizer needs no change here."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vae import data, device
from vae.errors import InputError
from vae.model import VAE
from vae.params import Params
from vae.schedule import Step
from vae.training import DECODED_AT_ONCE, Fit, build_optimizers


def check(params: Params, images: Tensor, free: int) -> None:
    """Raises InputError if a training on these images needs more than the `free` bytes. The message says how much it
    needs, and names the key that saves most if it is halved. Shapes: (N, P) uint8."""
    batch = min(params.train.batch_size, len(images))  # of which half is less
    params = params.model_copy(update={"train": params.train.model_copy(update={"batch_size": batch})})
    held = held_bytes(params)
    if (needed := held if held > free else held + step_bytes(params, images)) > free:
        costs = {key: held_bytes(half) + (held < needed and step_bytes(half, images)) for key, half in halved(params)}
        key = min(costs, key=costs.__getitem__)
        text = f"needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; lower {key} first"
        raise InputError(f"params.yaml: {key}: this training {text}")


def halved(params: Params) -> Iterator[tuple[str, Params]]:
    """Each number or list of numbers of the sections `model` and `train`, with params in which it is half as large."""
    for name in ("model", "train"):
        section = getattr(params, name)
        for key, value in section:
            if isinstance(value, list) or type(value) is int:
                half = [max(2, item // 2) for item in value] if isinstance(value, list) else max(2, value // 2)
                yield f"{name}.{key}", params.model_copy(update={name: section.model_copy(update={key: half})})


def held_bytes(params: Params) -> int:
    """The bytes of weights, their gradients, their updates, and the buffers of the optimizers, from a model on torch's
    device `meta`, which has shapes and no values."""
    with torch.device("meta"):
        model = VAE(params.model)
    optimizers = [item for group in build_optimizers(model, params.train) for item in group]
    buffers = [tensor for item in optimizers for tensors in item.buffers.values() for tensor in tensors]
    return sum(tensor.nbytes for tensor in buffers + 3 * list(model.parameters()))


def step_bytes(params: Params, images: Tensor) -> int:
    """About the bytes that the largest step on these images keeps for its gradients. They grow linearly with the images
    of a step and with the samples of each image, so two images and three samples are measured. (N, P) uint8."""
    fit, largest = Fit(VAE(params.model).to(images.device), params.train), 0
    weights = {tensor.data_ptr() for tensor in fit.model.parameters()}

    def kept(step: Step, count: int, samples: int) -> int:
        x, sizes = data.unit(images[:count]), dict[int, int]()
        noise = torch.zeros(count, samples, params.model.latent_dim, device=x.device)

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()  # views of one tensor count once
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks, device.autocast(fit.device, fit.precision):
            _loss = fit.loss(x, noise, replace(step, samples=samples))  # holds what is kept until all is counted
        return sum(size for key, size in sizes.items() if key not in weights)

    for epoch in {0, fit.schedule.fitting_epochs - 1, fit.schedule.epochs - 1}:  # one of each part of the training
        step, count = fit.schedule.of_epoch(epoch, 1)[0], min(params.train.batch_size, len(images))
        if not step.prior_alone:
            count = min(count, max(1, DECODED_AT_ONCE // step.samples))
        one, image, sample = (kept(step, *size) for size in ((1, 2), (2, 2), (1, 3)))
        largest = max(largest, one + (count - 1) * (image - one) + count * (step.samples - 2) * (sample - one))
    return largest
