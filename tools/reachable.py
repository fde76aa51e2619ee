"""For `make run`: exits with 0 if the data set is here or a source has it, and with 3 if there is no network.
A mistake that the user can mend is an error, so that nobody trains on the digits by mistake."""

from vae.runtime import command, mirrors

import os
import sys
from pathlib import Path

from vae.errors import InputError
from vae.params import load

UNREACHABLE = 3  # differs from 1, an error that another data set does not mend


def main(params: Path, data: Path) -> None:
    name = load(params).data.name
    if name not in mirrors.MIRRORS or mirrors.present(name, data):
        return
    if failures := mirrors.unreachable(name, dict(os.environ)):
        told = "; ".join(map(str, failures))
        if not all(failure.away and failure.source in mirrors.MIRRORS[name] for failure in failures):
            raise InputError(f"{name}: {told}. Mend this, or run on the bundled data: dvc exp run -S data.name=digits")
        print(f"{name}: no source answers ({told}): running on the bundled digits instead")
        print("if this network has a proxy, name it in HTTPS_PROXY")
        sys.exit(UNREACHABLE)


if __name__ == "__main__":
    command.run(main)
