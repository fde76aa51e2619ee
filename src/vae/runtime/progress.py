"""How far a training is: a bar in a terminal, else one line for each epoch, so that logs do not stay silent."""

from vae.runtime import command

import sys
import time
from collections.abc import Callable
from typing import Self

from tqdm import tqdm

MEASURED_SECONDS = 2  # of the first epoch, after which the whole time is estimated


class Bar:
    """Counts epochs, and the steps within them. `cost(epoch)` is about how long each epoch takes, in any unit."""

    def __init__(self, epochs: int, cost: Callable[[int], float]) -> None:
        self.costs = [cost(epoch) for epoch in range(epochs)]
        self.epoch = 0
        self.estimated = False
        self.bar = tqdm(total=epochs, disable=None, bar_format="{l_bar}{bar}| {n:.1f}/{total} epochs{postfix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, epoch: int) -> Callable[[int, int], None]:
        """Begins an epoch, counted from 0. Returns the function that is called after each step of it."""
        began = time.monotonic()
        self._is_after(epoch)
        self.bar.n = epoch

        def after(step: int, steps: int) -> None:
            self.bar.update(epoch + step / steps - self.bar.n)
            spent = time.monotonic() - began
            if not self.estimated and spent > MEASURED_SECONDS:
                self.estimated = True
                left = spent / step * steps * sum(self.costs[epoch:]) / self.costs[epoch]
                self.say(f"training takes about {duration(left)} on this machine")

        return after

    def end(self, figures: str, seconds: float) -> None:
        """Ends an epoch, which took that many seconds."""
        self._is_after(self.epoch + 1)
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            self.say(f"epoch {self.epoch} of {len(self.costs)}: {figures}, {duration(seconds)}")

    def _is_after(self, epoch: int) -> None:
        self.epoch = epoch
        command.last_words = f"stopped after epoch {epoch} of {len(self.costs)}; run the same command to go on"

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """A time in words: `4.2 s`, `50 s` or `12 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
