"""Fitting a VAE: a generator that yields one record per epoch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vae import augmentation, data, device, objective, parallel, streams
from vae.errors import InputError
from vae.model import VAE
from vae.optimizers import Adam, Muon, Optimizer
from vae.params import Params, Train
from vae.prior import Flow
from vae.schedule import Schedule, Step
from vae.streams import Purpose

COLUMNS = ("epoch", "train_neg_elbo_nats", "val_neg_elbo_nats", "rate_nats", "distortion_nats", "lr")
VALIDATION_BATCH = 1000
VALIDATION_SEED = 0  # fixed, so that trainings of all seeds are compared on the same pixels
VALIDATION_STREAMS: tuple[Purpose, ...] = ("validation pixels", "validation posterior")
STREAMS: tuple[Purpose, ...] = ("order", "augmentation", "pixels", "posterior")
DECODED_AT_ONCE = 2048  # samples of z
COLLAPSED_NATS = math.log(10)  # a lower rate is too little to tell ten kinds of images apart


@dataclass(frozen=True)
class Record:
    """One line of metrics/train.csv: means over images, in nats. Rate and distortion are of the training images."""

    epoch: int
    train_neg_elbo_nats: float
    val_neg_elbo_nats: float
    rate_nats: float
    distortion_nats: float
    lr: float


def build_optimizers(model: VAE, config: Train) -> tuple[list[Optimizer], list[Optimizer]]:
    """The optimizers of encoder and decoder, and the optimizers of the prior.
    Matrices and convolutions of encoder and decoder use Muon if `train.optimizer` says so. All else uses Adam. The
    couplings of a flow are small networks, which need far shorter steps than the mixture in the space of z."""
    networks = [*model.encode.parameters(), *model.decode.parameters()]
    matrices = [p for p in networks if p.ndim >= 2 and config.optimizer == "muon"]
    others = [p for p in networks if p.ndim < 2 or config.optimizer == "adam"]
    couplings, mixture = [], [*model.prior.parameters()]
    if isinstance(model.prior, Flow):
        couplings, mixture = [*model.prior.couplings.parameters()], [*model.prior.base.parameters()]
    of_networks = [Adam(others, config.learning_rate), Muon(matrices, config.muon_learning_rate)]
    of_prior = [Adam(mixture, config.prior_learning_rate), Adam(couplings, config.flow_learning_rate)]
    return [item for item in of_networks if item.params], [item for item in of_prior if item.params]


def inputs(grey: Tensor, binarization: str, generator: torch.Generator) -> Tensor:
    """The inputs of a training: fresh binary pixels, or the grey values. (B, P) uint8 -> (B, P) float32."""
    return data.binarize(grey, generator) if binarization == "dynamic" else data.unit(grey)


@torch.no_grad()
def validate(model: VAE, grey: Tensor, binarization: str) -> float:
    """The mean neg-ELBO of a split, in nats, with the same noise at each call. grey (V, P) uint8."""
    pixels, noise = (streams.stream(VALIDATION_SEED, name, grey.device) for name in VALIDATION_STREAMS)
    total = 0.0
    for batch in grey.split(VALIDATION_BATCH):
        eps = torch.randn(len(batch), model.config.latent_dim, generator=noise, device=grey.device)
        x = parallel.share(inputs(batch, binarization, pixels))
        rate, distortion = objective.elbo_terms(model, x, parallel.share(eps))
        total += (rate + distortion).sum(dtype=torch.float64).item()
    return parallel.total(torch.tensor(total, dtype=torch.float64, device=grey.device)).item() / len(grey)


@torch.no_grad()
def start_at_mean(model: VAE, train: Tensor) -> None:
    """Sets the decoder's bias to the logit of the mean image, so that no epoch is spent on learning it.
    Shapes: train (N, P) uint8."""
    mean = train.float().mean(dim=0) / 255  # (P,)
    model.decode.bias.copy_(torch.logit(mean, eps=1e-3))  # eps, because some pixels are always black


class Loss(nn.Module):
    """The loss of a step. It is a module, because torch follows the calls of a module to sum its gradients."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, noise: Tensor, now: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each image, its rate and its distortion. The distortion is 0 if the prior is trained alone.
        Shapes: x (B, P), noise (B, K, D) -> (B,), (B,), (B,)."""
        if now.prior_alone:
            loss = rate = objective.prior_rate(self.model, x, now.samples, noise)
            distortion = torch.zeros_like(rate)
        elif now.samples > 1:
            loss, rate, distortion = objective.importance_weighted_loss(self.model, x, now.samples, now.beta, noise)
        else:
            rate, distortion = objective.elbo_terms(self.model, x, noise[:, 0])
            loss = now.beta * rate + distortion
        return loss, rate.detach(), distortion.detach()


class Fit:
    """The state of a training, all of which a checkpoint holds."""

    def __init__(self, model: VAE, config: Train) -> None:
        self.model = model
        self.config = config
        self.network_optimizers, self.prior_optimizers = build_optimizers(model, config)
        self.schedule = Schedule(config, learned_prior=bool(self.prior_optimizers))
        self.device = next(model.parameters()).device
        self.precision = device.precision(config.precision, self.device)
        self.streams = {name: streams.stream(config.seed, name, self.device) for name in STREAMS}
        self.loss = parallel.together(Loss(model))
        self.records: list[Record] = []
        self.distortion = math.nan  # of the last epoch that trained the networks
        self.after_step: Callable[[int, int], None] = lambda _step, _steps: None  # called with the step of the epoch

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return len(self.records)

    @property
    def optimizers(self) -> list[Optimizer]:
        return self.network_optimizers + self.prior_optimizers

    def state_dict(self) -> dict[str, Any]:
        return {
            "records": [astuple(record) for record in self.records],
            "distortion": self.distortion,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "streams": {name: generator.get_state() for name, generator in self.streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.records = [Record(*row) for row in state["records"]]
        self.distortion = state["distortion"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, generator in self.streams.items():
            generator.set_state(state["streams"][name].cpu())

    def _gradients(self, x: Tensor, now: Step) -> Tensor:
        """Computes the gradients on a batch (B, P), or the gradients of the prior alone if the networks are frozen.
        They are summed over parts of the batch, so that memory does not grow with K, and over all processes.
        Returns the share of this process in the batch's mean rate and distortion, on the device. (2,)."""
        at_once = len(x) if now.prior_alone else max(1, DECODED_AT_ONCE // now.samples)
        draw = partial(torch.randn, generator=self.streams["posterior"], device=x.device)
        noise = torch.cat([draw(len(part), now.samples, self.model.config.latent_dim) for part in x.split(at_once)])
        total = torch.zeros(2, device=x.device)
        parts = list(zip(*(parallel.share(tensor).split(at_once) for tensor in (x, noise)), strict=True))
        for done, part in enumerate(parts, start=1):
            with device.autocast(self.device, self.precision), parallel.collecting(self.loss, done == len(parts)):
                loss, *terms = self.loss(*part, now)
            (loss.sum() / (len(x) / parallel.count())).backward()  # processes take the mean of their gradients
            total += torch.stack([term.sum() for term in terms])
        return total / len(x)

    def _pass(self, train: Tensor, binarization: str) -> tuple[Tensor, Step]:
        """Takes a step on every batch of the images.
        Returns their mean rate and distortion, (2,), and the last step."""
        order = torch.randperm(len(train), generator=self.streams["order"], device=train.device)  # (N,)
        batches = order.split(self.config.batch_size)
        steps = self.schedule.of_epoch(self.epoch, len(batches))
        total = torch.zeros((), device=train.device)
        for done, (now, batch) in enumerate(zip(steps, batches, strict=True), start=1):
            moved = augmentation.augment(train[batch], now.moved, self.streams["augmentation"])
            x = inputs(moved, binarization, self.streams["pixels"])
            self.model.zero_grad(set_to_none=True)
            terms = self._gradients(x, now)
            if self.config.gradient_clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
            for optimizer in [] if now.prior_alone else self.network_optimizers:
                optimizer.step(now.network_share)
            for optimizer in self.prior_optimizers:
                optimizer.step(now.prior_share)
            total = total + terms * len(batch)
            self.after_step(done, len(batches))
        return parallel.total(total).double() / len(train), steps[-1]

    def run_epoch(self, train: Tensor, validation: Tensor, binarization: str) -> Record:
        """Trains on every image once, then validates.
        While the prior is trained alone, the networks are frozen and the distortion cannot change. The record then
        repeats the distortion of the epoch before."""
        self.model.train()
        means, last = self._pass(train, binarization)
        self.model.eval()
        rate, distortion = means.tolist()
        if not last.prior_alone:
            self.distortion = distortion
        with device.autocast(self.device, self.precision):
            val = validate(self.model, validation, binarization)
        lr = last.network_share * self.network_optimizers[-1].learning_rate  # Muon's, if there is one
        values = (rate + self.distortion, val, rate, self.distortion, lr)
        rounded = (float(f"{value:.6g}") for value in values)  # equal in the file and in MLflow
        self.records.append(Record(self.epoch + 1, *rounded))
        return self.records[-1]


def start(params: Params, train: Tensor) -> Fit:
    """A new model and the state of its training, from the seed and the training images (N, P) alone."""
    torch.manual_seed(streams.derived(params.train.seed, "weights"))  # torch's initializers take no generator
    model = VAE(params.model).to(train.device)
    if params.train.initial_bias == "data-mean":
        start_at_mean(model, train)
    return Fit(model, params.train)


def collapse(record: Record) -> str | None:
    """The warning for a training whose latents carry nothing (posterior collapse, Bowman et al. 2016), or None."""
    if record.rate_nats >= COLLAPSED_NATS:
        return None
    return (
        f"the latents carry {record.rate_nats:.2f} nats, too few to tell ten kinds of images apart; train longer, "
        "lower train.learning_rate or train.muon_learning_rate, or raise train.warmup_steps or train.kl_warmup_epochs"
    )


def fit(state: Fit, train: Tensor, validation: Tensor, binarization: str) -> Iterator[Record]:
    """Trains all epochs that `state` has not had yet, and yields a record after each.
    Shapes: train (N, P) uint8 and validation (V, P) uint8, grey.
    Raises InputError if the loss is no longer finite. Nothing is yielded for that epoch."""
    while state.epoch < state.schedule.epochs:
        record = state.run_epoch(train, validation, binarization)
        if not math.isfinite(record.train_neg_elbo_nats) or not math.isfinite(record.val_neg_elbo_nats):
            raise InputError(
                f"training diverged: the loss of epoch {record.epoch} is not finite; "
                "lower train.learning_rate, train.muon_learning_rate or the rates of the prior, "
                "or bound the gradients with train.gradient_clip"
            )
        yield record
