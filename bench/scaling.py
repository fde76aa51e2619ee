"""How a training scales with its processes: the seconds of an epoch in 1, 2, ... processes that share the threads out.

`PYTHONPATH=src:. python bench/scaling.py params.yaml data 1,2` (nothing else should run)
"""

from vae.runtime import command, processes

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROUNDS = 3
IMAGES = 15000


def measure(params: Path, data_folder: Path) -> None:
    """In one of the processes: trains one epoch to warm up, then measures some. The first process prints the median."""
    import torch

    from vae import data, device, parallel, training
    from vae.params import load

    config = load(params)
    where = device.setup(config.train)
    images = data.load(data_folder, "train").images[:IMAGES].to(where)
    with parallel.group(where, config.train.batch_size):
        fit = training.start(config, images)
        seconds = []
        for _ in range(ROUNDS + 1):
            started = time.perf_counter()
            fit.run_epoch(images, images[:1], config.data.binarization)
            seconds.append(time.perf_counter() - started)
            fit.records.clear()  # the first epoch again, so that all do the same work
        threads = torch.get_num_threads()
        print(f"{parallel.count()} x {threads} threads: {median(seconds[1:]):.2f} s for {len(images)} images")


def main(params: Path, data: Path, counts: str) -> None:
    """Measures each number of processes in `counts`, such as 1,2."""
    for count in counts.split(","):
        environment = os.environ | {"TORCHRUN": f"--nproc-per-node {count}"}
        subprocess.run([sys.executable, __file__, str(params), str(data), counts], env=environment, check=True)


if __name__ == "__main__":
    if "TORCHRUN" in os.environ:
        processes.launch()
        measure(*map(Path, sys.argv[1:3]))
    else:
        command.run(main)
