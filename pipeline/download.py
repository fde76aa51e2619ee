"""Stage `download`: the data set that data.name names, fetched and verified, or your own images, as four IDX files."""

from vae.runtime import command, images, mirrors

import os
from pathlib import Path

from vae import idx
from vae.params import load


def main(params: Path, data: Path) -> None:
    config = load(params).data
    if config.name == "folder":
        found, labels, test = images.load(
            Path(config.path), mirrors.FILES, resize=config.resize, grey=config.grey, seed=config.split_seed
        )
        mirrors.write_files(data, zip(mirrors.FILES, idx.files(found, labels, test), strict=True))
        source = f"{config.path}: {len(found) - test} training images and {test} test images"
    else:
        source = mirrors.download(config.name, data, dict(os.environ))[0]
    size = sum(file.stat().st_size for file in data.iterdir())
    print(f"{config.name}: {size / 1e6:.1f} MB in {data}, from {source}")


if __name__ == "__main__":
    command.run(main)
