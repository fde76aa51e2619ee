"""Stage `train`: fits the VAE, sends each epoch to MLflow while it runs, and resumes after a kill."""

from vae.runtime import command, live, processes

processes.launch()
# Before the imports below, so that mlflow is imported there while torch is imported here.
OBSERVER = live.start() if processes.is_first() else None

from vae.runtime import checkpoint, cores, files, machine, memory, progress, repository

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch

from vae import data, device, footprint, parallel, params, streams, training
from vae.errors import InputError
from vae.model import VAE
from vae.model import save as save_model

SHOWN = 64  # digits in the picture of an epoch


def main(config_path: Path, data_folder: Path, *, model: Path, curves: Path, validation: Path, run: Path) -> None:
    config = params.load(config_path)
    where = device.setup(config.train)
    print(device.explain(config.train.precision, where), flush=True)
    images = data.load(data_folder, "train").images.to(where)
    split = data.split_validation(images, config.data.validation)
    if (used := len(split[1])) < config.data.validation:
        print(f"data.validation: {used} images, at most a fifth of {len(images)}, instead of {config.data.validation}")
    footprint.check(config, split[0], memory.free_bytes(where.type))
    sections = config.model_dump_json(include=set(params.TRAINING))
    key = checkpoint.training_key(f"{sections}\n{where.type}", [*data_folder.iterdir(), Path(__file__)])
    with parallel.group(where, config.train.batch_size):
        if parallel.of_first(key) != key:
            raise InputError(f"process {parallel.rank()} has other params, data, code or torch than process 0")
        state = training.start(config, split[0])
        epochs = training.fit(state, *split, config.data.binarization)
        if parallel.rank():
            resume(state, None)
            list(epochs)
            return

        def write() -> None:
            """Writes the curves, the figure by which sweeps are sorted, and the number of images it is measured on."""
            best = {"val_neg_elbo_nats": state.records[-1].val_neg_elbo_nats, "validation_images": used}
            files.write_csv(curves, training.COLUMNS, map(astuple, state.records))
            files.write_json(validation, best)

        # Training opens an MLflow run that only `track` completes. Deleting its output makes DVC run `track`, even if
        # training reproduces the locked results.
        run.unlink(missing_ok=True)
        root, here = repository.main_repository(), machine.describe(config.train.threads, where.type)
        trained = {"device": where.type, "precision": state.precision}
        if parallel.count() > 1:
            trained["processes"] = here["machine.processes"] = str(parallel.count())
        with checkpoint.checkpoint(root, key) as saved, memory.noted(saved.path.with_suffix(".memory")):
            with live.follow(OBSERVER, config_path, root, key, saved.own, here) as feed:
                resume(state, saved.load())
                run_epochs(state, epochs, saved, feed, write)
                write()
                save_model(state.model, model, **trained)
            saved.finish(model)  # when nothing can fail any more
    last = state.records[-1]
    print(f"validation neg-ELBO {last.val_neg_elbo_nats:.2f} nats, training {last.train_neg_elbo_nats:.2f}")
    if complaint := training.collapse(last):
        print(f"warning: {complaint}", file=sys.stderr)


def resume(state: training.Fit, saved: dict[str, Any] | None) -> None:
    """Puts all processes into the saved state of the first, if there is one."""
    if saved := parallel.of_first(saved):
        state.load_state_dict(saved)


def run_epochs(
    state: training.Fit,
    epochs: Iterator[training.Record],
    saved: checkpoint.Checkpoint,
    feed: live.Feed,
    write: Callable[[], None],
) -> None:
    """Trains the epochs that the checkpoint lacks. Saves, writes and sends each."""
    if state.epoch:
        print(f"resuming after epoch {state.epoch}")
        write()  # DVC has removed the files of the killed training
    with progress.Bar(state.schedule.epochs, state.schedule.relative_cost) as bar:
        while state.epoch < state.schedule.epochs:
            with cores.turn(max(state.config.threads, parallel.local()[1])):
                started = time.monotonic()
                state.after_step = bar.start(state.epoch)
                record = next(epochs)
                seconds = time.monotonic() - started
            saved.save(state.state_dict())
            with suppress(OSError):  # a full disk; the end of the training needs it, and says so
                write()
            feed.log(asdict(record), seconds)
            if record.epoch.bit_count() == 1:  # 1, 2, 4, 8, ...: pictures get rarer as training slows down
                feed.show(record.epoch, digits(state.model, state.config.seed))
            bar.end(f"neg-ELBO {record.train_neg_elbo_nats:.2f}, validation {record.val_neg_elbo_nats:.2f}", seconds)


@torch.no_grad()
def digits(vae: VAE, seed: int) -> bytes:
    """Sampled digits, one grey byte for each pixel, with the same noise after each epoch."""
    generator = streams.stream(seed, "epoch samples", next(vae.parameters()).device)
    return vae.sample(SHOWN, generator).mul(255).round().byte().cpu().numpy().tobytes()


if __name__ == "__main__":
    command.run(main)
