"""Stage `download`: fetches the data set that data.name names, verified, as four IDX files."""

from vae.runtime import command, mirrors

import os
from pathlib import Path

from vae.params import load


def main(params: Path, data: Path) -> None:
    name = load(params).data.name
    sources = mirrors.download(name, data, dict(os.environ))
    size = sum(file.stat().st_size for file in data.iterdir())
    print(f"{name}: {size / 1e6:.1f} MB in {data}, from {sources[0]}")


if __name__ == "__main__":
    command.run(main)
