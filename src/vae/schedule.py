"""What changes as a training goes on: learning rates, the objective, and which images are moved."""

from dataclasses import dataclass

from vae.optimizers import rate_factor
from vae.params import Train


def kl_weight(config: Train, epoch: float) -> float:
    """beta, the weight of the rate: rises linearly to 1 (Bowman et al. 2016; Sonderby et al. 2016)."""
    return min(1.0, epoch / config.kl_warmup_epochs) if config.kl_warmup_epochs else 1.0


@dataclass(frozen=True)
class Step:
    """What one step of a training does."""

    network_share: float  # of the learning rates of encoder and decoder
    prior_share: float  # of the learning rates of the prior
    samples: int  # K of the objective
    beta: float = 1.0  # weight of the rate
    moved: float = 0.0  # share of the images
    prior_alone: bool = False  # the networks stand still


class Schedule:
    """The whole model is trained, then its prior alone, where it is learned, then all of it again on many samples.

    The learning rates of the prior fall over all epochs of the first two parts, those of the networks over the first.
    In the third both start again, together and lower.
    """

    def __init__(self, config: Train, learned_prior: bool) -> None:
        self.config = config
        self.fitting_epochs = config.epochs + (config.prior_epochs if learned_prior else 0)
        self.epochs = self.fitting_epochs + config.refine_epochs

    def of_epoch(self, epoch: int, steps: int) -> list[Step]:
        """The steps of an epoch, which are counted from 0 and have `steps` each."""
        return [self._at(epoch * steps + index, steps) for index in range(steps)]

    def _at(self, step: int, steps: int) -> Step:
        config, beta = self.config, kl_weight(self.config, step / steps)
        if (refining := step - self.fitting_epochs * steps) >= 0:
            share = config.refine_rate * self._share(refining, config.refine_epochs * steps)
            return Step(share, share, config.refine_importance_samples, beta)
        prior_share = self._share(step, self.fitting_epochs * steps)
        network_steps = config.epochs * steps
        if step >= network_steps:
            return Step(0.0, prior_share, config.importance_samples, prior_alone=True)
        moved = config.augmentation * (1 - step / network_steps)
        return Step(self._share(step, network_steps), prior_share, config.importance_samples, beta, moved)

    def _share(self, step: int, of: int) -> float:
        return rate_factor(self.config.schedule, step / of, step, self.config.warmup_steps)
