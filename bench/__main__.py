"""`make bench`: how close to the machine's limit, beside the tutorial that this project grew from.

Prints every figure, and writes metrics/bench.json and the README's tables. Takes about ten minutes;
nothing else should run meanwhile.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import cost, growth, origin, tables
from bench.contender import IMAGES, SAMPLES
from bench.processes import ROOT, alternate, environment, measure, variant
from vae import data, leaderboard, metrics, model

ROUNDS = 5
SAME_NETWORK: dict[str, dict[str, Any]] = {  # as the origin's, in our words
    "data": {"binarization": "none"},
    "model": {
        "architecture": "mlp",
        "encoder": [512, 256],
        "decoder": [256, 512],
        "latent_dim": 20,
        "prior": "standard-normal",
    },
    "train": {
        "importance_samples": 1,
        "batch_size": 128,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "schedule": "constant",
    },
}
QUICK: dict[str, Any] = {"batch_size": 256, "learning_rate": 0.008, "schedule": "cosine"}
ENOUGH: dict[str, dict[str, Any]] = {  # epochs to a grey neg-ELBO, in nats
    "origin_quality": {"epochs": 7, "kl_warmup_epochs": 3.5},  # 101.2, where the tutorial ended when it was first run
    "origin_end": {"epochs": 9, "kl_warmup_epochs": 3},  # where it ends beside us
}


def speed(folder: Path, mnist: Path) -> dict[str, float]:
    """Epochs and evaluations, beside the origin and beside the bare matrix products."""
    params = variant(folder / "params.yaml", **SAME_NETWORK)
    ours, theirs = environment(), dict(os.environ) | {"PYTHONPATH": environment()["PYTHONPATH"]}
    epochs = alternate(
        {"epoch_origin": (params, theirs), "epoch_ours": (params, ours), "epoch_floor": (params, ours)}, mnist, ROUNDS
    )
    bounds = alternate({"evaluation_ours": (params, ours), "evaluation_floor": (params, ours)}, mnist, 2 * ROUNDS)
    return {
        "epoch_seconds_origin": epochs["epoch_origin"],
        "epoch_seconds_ours": epochs["epoch_ours"],
        "epoch_seconds_floor": epochs["epoch_floor"],
        "epoch_speedup": epochs["epoch_origin"] / epochs["epoch_ours"],
        "floor_fraction": epochs["epoch_floor"] / epochs["epoch_ours"],
        "evaluation_samples_per_second": IMAGES * SAMPLES / bounds["evaluation_ours"],
        "evaluation_floor_fraction": bounds["evaluation_floor"] / bounds["evaluation_ours"],
    }


def to_origin_quality(folder: Path, mnist: Path) -> dict[str, float]:
    """Whole processes, from start to a saved model: the origin's, and ours with the same network."""
    weights = folder / "origin.pt"
    theirs = measure(
        [sys.executable, str(ROOT / "bench/origin.py"), str(mnist), str(weights)], folder, dict(os.environ)
    )
    test = data.unit(data.load(mnist, "t10k").images)
    network = origin.VAE()
    network.load_state_dict(torch.load(weights, weights_only=True))
    figures = {
        "origin_process_seconds": theirs.seconds,
        "origin_neg_elbo_grey_nats": origin.neg_elbo_grey(network, test),
    }
    for goal, enough in ENOUGH.items():
        here = folder / goal
        here.mkdir()
        params = variant(here / "params.yaml", **SAME_NETWORK | {"train": SAME_NETWORK["train"] | QUICK | enough})
        outputs = [str(here / name) for name in ("vae.safetensors", "train.csv", "validation.json", "mlflow.json")]
        env = environment(DVC_ROOT=str(here), MLFLOW_TRACKING_URI=f"sqlite:///{here}/mlflow.db")
        command = [sys.executable, str(ROOT / "pipeline/train.py"), str(params), str(mnist), *outputs]
        ours = measure(command, here, env)
        bounds = metrics.over_images(model.load(Path(outputs[0])), test, 2, torch.Generator().manual_seed(0), "grey")
        figures |= {
            f"time_to_{goal}_seconds": ours.seconds,
            f"{goal}_reached_neg_elbo_grey_nats": (bounds.rate + bounds.distortion).mean().item(),
            f"time_to_{goal}_speedup": theirs.seconds / ours.seconds,
        }
    return figures


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "torchvision", "dvc", "mlflow", "numpy")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def show(values: dict[str, Any], indent: str = "") -> None:
    """Prints figures, one a line."""
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        elif isinstance(value, list):
            for line in value:
                print(f"{line['what']:45s} {line['seconds']:8.2f} s  {line['peak_mib'] or 0:6.0f} MiB")
        else:
            print(
                f"{indent}{name:{40 - len(indent)}} {value:.2f}"
                if isinstance(value, float)
                else f"{indent}{name} {value}"
            )


def main(mnist: Path, result: Path, readme: Path, parts: list[str]) -> None:
    """Measures the parts, all where none is named, and writes `result` (other parts stay) and the README's tables."""
    torch.set_num_threads(2)
    figures = json.loads(result.read_text()) if result.is_file() else {}
    figures |= {"machine": machine(), "threads": 2}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: speed(folder, mnist),
            "quality": lambda: to_origin_quality(folder, mnist),
            "cost": lambda: cost.fixed_cost(folder / "cost", mnist),
            "growth": lambda: {"growth": growth.growth(folder / "growth", mnist)},
        }
        for part in parts or measured:
            values = rounded(measured[part]())
            show(values)
            figures |= values
            result.write_text(json.dumps(figures, indent=2) + "\n")
    readme.write_text(leaderboard.insert(readme.read_text(), tables.table(figures), "bench"))


def rounded(value: Any) -> Any:
    """Four digits: the rest is noise."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    data_folder, result_path, readme_path = (Path(word).resolve() for word in sys.argv[1:4])
    main(data_folder, result_path, readme_path, sys.argv[4:])
