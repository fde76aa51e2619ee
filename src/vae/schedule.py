"""The schedule of a training: learning rates, objective and augmentation of each step."""

from dataclasses import dataclass

from vae.optimizers import rate_factor
from vae.params import Train

PRIOR_COST = 1 / 3  # of a step of the prior alone; measured with the default
PARTS = 20  # of an epoch; the steps of a part are taken to cost the same


def kl_weight(config: Train, epoch: float) -> float:
    """beta, the weight of the rate, which rises linearly to 1 (Bowman et al. 2016; Sonderby et al. 2016)."""
    return min(1.0, epoch / config.kl_warmup_epochs) if config.kl_warmup_epochs else 1.0


@dataclass(frozen=True)
class Step:
    """The settings of one step of a training."""

    network_share: float  # factor of the learning rates of encoder and decoder
    prior_share: float  # factor of the learning rates of the prior
    samples: int  # K of the objective
    beta: float = 1.0  # weight of the rate
    moved: float = 0.0  # share of images that are augmented
    prior_alone: bool = False  # encoder and decoder are frozen


class Schedule:
    """Trains the whole model, then its prior alone (if the prior is learned), then the whole model on many samples.
    The learning rates of the networks fall during the first part. The learning rates of the prior fall during the first
    two parts. In the third part all start again, at a lower rate."""

    def __init__(self, config: Train, learned_prior: bool) -> None:
        self.config = config
        self.fitting_epochs = config.epochs + (config.prior_epochs if learned_prior else 0)
        self.epochs = self.fitting_epochs + config.refine_epochs

    def relative_cost(self, epoch: float) -> float:
        """About how long a step at this time takes, compared with one on `train.importance_samples` samples. Without it
        no remaining time can be told."""
        step = self._at(int(epoch * PARTS), PARTS)
        return PRIOR_COST if step.prior_alone else step.samples / self.config.importance_samples

    def of_epoch(self, epoch: int, steps: int) -> list[Step]:
        """The steps of an epoch. Epochs are counted from 0 and have `steps` steps each."""
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
        # One sample takes half the time of two. But with one at the start the latents can collapse, and with one at the
        # end the bound is worse.
        edge = min(step, network_steps - 1 - step) / steps  # epochs to the nearer end of this part
        samples = config.importance_samples if edge < config.importance_epochs else 1
        return Step(self._share(step, network_steps), prior_share, samples, beta, moved)

    def _share(self, step: int, of: int) -> float:
        return rate_factor(self.config.schedule, step / of, step, self.config.warmup_steps)
