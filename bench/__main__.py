"""`make bench`: speed compared with the tutorial that this project grew from, and with the machine's limit.

Prints every figure, and writes metrics/bench.json and the tables of docs/speed.md. Takes about ten minutes, in which
nothing else should run.
"""

from vae.runtime import machine

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import cost, growth, origin, tables
from bench.contender import IMAGES, SAMPLES
from bench.processes import ROOT, alternate, environment, measure, variant
from vae import data, device, model
from vae.evaluation import metrics, readme

ROUNDS = 5
WHOLE_ROUNDS = 2
SAME_NETWORK: dict[str, dict[str, Any]] = {  # the network of the tutorial, as params.yaml
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
    "origin_end": {"epochs": 9, "kl_warmup_epochs": 3},  # where it ends in this benchmark
}


def speed(folder: Path, mnist: Path) -> dict[str, float]:
    """Epochs and evaluations, next to the tutorial's and to the bare matrix products."""
    params = variant(folder / "params.yaml", **SAME_NETWORK)
    epochs = alternate(("epoch_origin", "epoch_ours", "epoch_floor"), params, mnist, ROUNDS)
    bounds = alternate(("evaluation_ours", "evaluation_floor"), params, mnist, 2 * ROUNDS)
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
    """Whole processes, from start to a saved model: the tutorial's, and ours with the same network."""
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
        outputs = {"model": "vae.safetensors", "curves": "train.csv", "validation": "val.json", "run": "mlflow.json"}
        options = [word for name, file in outputs.items() for word in (f"--{name}", str(here / file))]
        env = environment(DVC_ROOT=str(here), MLFLOW_TRACKING_URI=f"sqlite:///{here}/mlflow.db")
        command = [sys.executable, str(ROOT / "pipeline/train.py"), str(params), str(mnist), *options]
        ours = measure(command, here, env)
        bounds = metrics.over_images(
            model.load(here / outputs["model"]), test, 2, torch.Generator().manual_seed(0), "grey"
        )
        figures |= {
            f"time_to_{goal}_seconds": ours.seconds,
            f"{goal}_reached_neg_elbo_grey_nats": (bounds.rate + bounds.distortion).mean().item(),
            f"time_to_{goal}_speedup": theirs.seconds / ours.seconds,
        }
    return figures


def whole(folder: Path, mnist: Path) -> dict[str, Any]:
    """The whole tutorial and the whole default `dvc repro --force` in turn: seconds of each, and what each reaches."""
    env = cost.clone(folder / "whole", mnist)
    script = [sys.executable, str(ROOT / "bench/origin.py"), str(mnist), str(folder / "whole.pt")]
    theirs, ours = [], []
    for _ in range(WHOLE_ROUNDS):
        theirs.append(measure(script, folder, dict(os.environ)).seconds)
        ours.append(cost.stage_seconds(folder / "whole", env)[0])
    test = data.unit(data.load(mnist, "t10k").images)
    network = origin.VAE()
    network.load_state_dict(torch.load(folder / "whole.pt", weights_only=True))
    reached = json.loads((folder / "whole/metrics/evaluation.json").read_text())
    return {
        "whole_seconds_origin": theirs,
        "whole_seconds_ours": ours,
        "whole_ratio": median(mine / other for mine, other in zip(ours, theirs, strict=True)),
        "whole_neg_elbo_grey_nats_origin": origin.neg_elbo_grey(network, test),
        "whole_neg_elbo_grey_nats_ours": reached["neg_elbo_grey_nats"],
        "whole_nll_nats_ours": reached["nll_iw_nats"],
    }


def kind() -> tuple[str, dict[str, str]]:
    """The kind of CPU that gives the figures, in words, and its tags."""
    tags = machine.describe(torch.get_num_threads(), "cpu")
    cpu = tags["machine.cpu"].partition(",")[0]
    bf16 = device.native_bf16(torch.device("cpu"))
    return f"{cpu}, {'bf16' if bf16 else tags['machine.instructions']}{' alone' * ('machine.limits' in tags)}", tags


def show(values: dict[str, Any], indent: str = "") -> None:
    """Prints one figure a line."""
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        elif name.startswith("whole_seconds"):
            print(f"{indent}{name:{40 - len(indent)}} {tables.spread(value)}")
        elif isinstance(value, list):
            for line in value:
                print(f"{line['what']:45s} {line['seconds']:8.2f} s  {line['peak_mib'] or 0:6.0f} MiB")
        else:
            print(
                f"{indent}{name:{40 - len(indent)}} {value:.2f}"
                if isinstance(value, float)
                else f"{indent}{name} {value}"
            )


def main(mnist: Path, result: Path, page: Path, parts: list[str]) -> None:
    """Measures the parts, or all if none is named. Writes `result`, which keeps other parts, and `page`."""
    torch.set_num_threads(2)
    kinds = json.loads(result.read_text()) if result.is_file() else {}
    name_of_kind, tags = kind()
    figures = kinds.setdefault(name_of_kind, {})
    figures["machine"] = tags
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: speed(folder, mnist),
            "whole": lambda: whole(folder, mnist),
            "quality": lambda: to_origin_quality(folder, mnist),
            "cost": lambda: cost.fixed_cost(folder / "cost", mnist),
            "growth": lambda: {"growth": growth.growth(folder / "growth", mnist)},
        }
        for part in parts or measured:
            values = rounded(measured[part]())
            show(values)
            figures.update(values)
            result.write_text(json.dumps(kinds, indent=2) + "\n")
    page.write_text(readme.insert(page.read_text(), tables.table(kinds), "bench"))


def rounded(value: Any) -> Any:
    """Rounds to four digits, because the others are noise."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    data_folder, result_path, page_path = (Path(word).resolve() for word in sys.argv[1:4])
    main(data_folder, result_path, page_path, sys.argv[4:])
