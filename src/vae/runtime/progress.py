"""How far a training is: a bar in a terminal, else one line for each epoch, so that logs do not stay silent."""

from vae.runtime import command

import sys
import time
from collections.abc import Callable
from typing import Self

from tqdm import tqdm

MEASURED_SECONDS = 3  # of the first epoch, after which the whole time is estimated


class Bar:
    """Counts epochs, and the steps within them. `cost(epoch)` is about how long a step at this time takes, in any unit.
    The start of epoch 1 is 1.0, its middle 1.5."""

    def __init__(self, epochs: int, cost: Callable[[float], float]) -> None:
        self.epochs, self.cost, self.epoch = epochs, cost, 0
        self.estimated = False
        self.bar = tqdm(total=epochs, disable=None, bar_format="{l_bar}{bar}| {n:.1f}/{total} epochs{postfix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, epoch: int) -> Callable[[int, int], None]:
        """Begins an epoch, counted from 0. Returns the function that is called after each step of it."""
        first, began = 0, 0.0  # the first step is left out, because it is far slower than the others
        self._is_after(epoch)
        self.bar.n = epoch

        def costs(start: int, end: int, steps: int) -> float:
            return sum(self.cost(epoch + step / steps) for step in range(start, end))

        def after(step: int, steps: int) -> None:
            nonlocal first, began
            self.bar.update(epoch + step / steps - self.bar.n)
            now = time.monotonic()
            if not first:
                first, began = step, now
            elif not self.estimated and now - began > MEASURED_SECONDS:
                self.estimated = True
                whole = (now - began) * costs(0, (self.epochs - epoch) * steps, steps) / costs(first, step, steps)
                self.say(f"training takes about {duration(whole)} on this machine")

        return after

    def end(self, figures: str, seconds: float) -> None:
        """Ends an epoch, which took that many seconds."""
        self._is_after(self.epoch + 1)
        self.bar.set_postfix_str(figures)
        if self.bar.disable:
            self.say(f"epoch {self.epoch} of {self.epochs}: {figures}, {duration(seconds)}")

    def _is_after(self, epoch: int) -> None:
        self.epoch = epoch
        command.last_words = f"stopped after epoch {epoch} of {self.epochs}; run the same command to go on"

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """A time in words: `4.2 s`, `50 s` or `12 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
