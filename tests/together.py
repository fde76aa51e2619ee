"""What a few small trainings compute, alone or in several processes under torchrun (`TORCHRUN=... python together.py`).
Each process writes its results into a file of its own."""

from vae.runtime import processes

import io
import sys
from pathlib import Path
from typing import Any

import torch

from vae import parallel, params, training

SIZE = 300  # training images: four batches of 64 and one of 44, which three processes cannot share out evenly
CPU = torch.device("cpu")


def compute(config: params.Params, images: torch.Tensor) -> dict[str, Any]:
    """The gradients on the last, small batch, its terms, the validation, and two trainings, one of them resumed."""
    train, validation = images[:SIZE], images[SIZE:]
    fit = training.start(config, train)
    found: dict[str, Any] = {"validation": training.validate(fit.model, validation, "dynamic")}
    for name, epoch in {"whole model": 0, "prior alone": config.train.epochs}.items():
        if epoch == fit.schedule.epochs:  # a standard normal prior is not trained
            break
        step = fit.schedule.of_epoch(epoch, 5)[-1]
        fit.model.zero_grad(set_to_none=True)
        x = training.inputs(train[:44], "dynamic", fit.streams["pixels"])
        found[f"terms, {name}"] = parallel.total(fit._gradients(x, step))
        gradients = {key: p.grad.clone() for key, p in fit.model.named_parameters() if p.grad is not None}
        found[f"gradients, {name}"] = gradients

    whole, resumed = training.start(config, train), training.start(config, train)
    found["records"] = []
    for record in training.fit(whole, train, validation, "dynamic"):
        found["records"].append(record)
        if record.epoch == 1:
            torch.save(whole.state_dict(), file := io.BytesIO())
            resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    list(training.fit(resumed, train, validation, "dynamic"))
    found["weights"], found["resumed weights"] = whole.model.state_dict(), resumed.model.state_dict()
    return found


def main(given: Path, folder: Path) -> None:
    """Computes all cases of the file `given`."""
    cases = torch.load(given, weights_only=False)
    torch.set_num_threads(1)
    with parallel.group(CPU, 64):
        found = [compute(config, cases["images"]) for config in cases["configs"]]
        torch.save(found, folder / f"{parallel.rank()}.pt")


if __name__ == "__main__":
    processes.launch()
    main(*map(Path, sys.argv[1:]))
