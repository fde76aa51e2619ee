"""For `make run`: exits 0 where the chosen data set is here or some source has it, 3 where none answers."""

import os
import sys
from pathlib import Path

from vae import command, mirrors
from vae.params import load

UNREACHABLE = 3  # apart from 1, an error that no other data set mends


def main(params: Path, data: Path) -> None:
    """Tells whether the data set can be had."""
    name = load(params).data.name
    if name == "digits" or mirrors.present(name, data):
        return
    if failures := mirrors.unreachable(name, dict(os.environ)):
        print(f"{name}: no source answers ({'; '.join(failures)}): running on the bundled digits instead")
        sys.exit(UNREACHABLE)


if __name__ == "__main__":
    command.run(main)
