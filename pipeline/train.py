"""Stage `train`: fits the VAE, sends each epoch to MLflow while it runs, and resumes after a kill."""

from vae.runtime import command, live, processes

processes.launch()
# Before the imports below, so that mlflow is imported there while torch is imported here.
OBSERVER = live.start() if processes.is_first() else None

from vae.runtime import checkpoint, cores, files, machine, memory, progress, repository

import sys
import time
from collections.abc import Callable
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
Records = list[training.Record]


def main(config_path: Path, data_folder: Path, *, model: Path, curves: Path, validation: Path, run: Path) -> None:
    config = params.load(config_path)
    where = device.setup(config.train)
    print(device.explain(config.train.precision, where), flush=True)
    images = data.load(data_folder, "train").images.to(where)
    split = data.split_validation(images, config.data.validation)
    if (used := len(split[1])) < config.data.validation:
        print(f"data.validation: {used} images, at most a fifth of {len(images)}, instead of {config.data.validation}")

    def write(records: Records) -> None:
        """Writes the curves, the figure by which sweeps are sorted, and the number of images that it is measured on."""
        files.write_csv(curves, training.COLUMNS, map(astuple, records))
        files.write_json(validation, {"val_neg_elbo_nats": records[-1].val_neg_elbo_nats, "validation_images": used})

    footprint.check(config, split[0], memory.free_bytes(where.type))
    sections = config.model_dump_json(include=set(params.TRAINING))
    key = checkpoint.training_key(f"{sections}\n{where.type}", [*data_folder.iterdir(), Path(__file__)])
    with parallel.group(where, config.train.batch_size):
        if parallel.of_first(key) != key:
            raise InputError(f"process {parallel.rank()} has other params, data, code or torch than process 0")
        state = training.start(config, split[0])
        if parallel.rank():
            resume(state, None)
            list(training.fit(state, *split, config.data.binarization))
            return
        # Training opens an MLflow run that only `track` completes. Deleting its output makes DVC run `track`, even if
        # training reproduces the locked results.
        run.unlink(missing_ok=True)
        root, here = repository.main_repository(), machine.describe(config.train.threads, where.type)
        trained = {"device": where.type, "precision": state.precision}
        if parallel.count() > 1:
            trained["processes"] = here["machine.processes"] = str(parallel.count())
        with checkpoint.checkpoint(root, key) as saved, memory.noted(saved.path.with_suffix(".memory")):
            with live.follow(OBSERVER, config_path, root, key, saved.own, here) as feed:
                records = run_epochs(state, split, config, saved, feed, write)
                write(records)
                save_model(state.model, model, **trained)
                feed.trained()
            saved.finish(model)  # when nothing can fail any more
    last = records[-1]
    print(f"validation neg-ELBO {last.val_neg_elbo_nats:.2f} nats, training {last.train_neg_elbo_nats:.2f}")
    if complaint := training.collapse(last):
        print(f"warning: {complaint}", file=sys.stderr)


def resume(state: training.Fit, saved: dict[str, Any] | None) -> Records:
    """Puts all processes into the saved state of the first, and returns its records."""
    if not (saved := parallel.of_first(saved)):
        return []
    state.load_state_dict(saved["fit"])
    return [training.Record(*row) for row in saved["records"]]


def run_epochs(
    state: training.Fit,
    split: tuple[torch.Tensor, torch.Tensor],
    config: params.Params,
    saved: checkpoint.Checkpoint,
    feed: live.Feed,
    write: Callable[[Records], None],
) -> Records:
    """Trains the epochs that the checkpoint lacks. Saves, writes and sends each, and returns the records of all."""
    if records := resume(state, saved.load()):
        print(f"resuming after epoch {state.epoch}")
        write(records)  # DVC has removed the files of the killed training
    epochs = training.fit(state, *split, config.data.binarization)
    with progress.Bar(state.schedule.epochs, state.schedule.relative_cost) as bar:
        while state.epoch < state.schedule.epochs:
            with cores.turn(max(config.train.threads, parallel.local()[1])):
                started = time.monotonic()
                state.after_step = bar.start(state.epoch)
                record = next(epochs)
                seconds = time.monotonic() - started
            records.append(record)
            saved.save({"fit": state.state_dict(), "records": [astuple(row) for row in records]})
            with suppress(OSError):  # a full disk; the end of the training needs it, and says so
                write(records)
            feed.log(asdict(record), seconds)
            if record.epoch.bit_count() == 1:  # 1, 2, 4, 8, ...: pictures get rarer as training slows down
                feed.show(record.epoch, digits(state.model, config.train.seed))
            bar.end(f"neg-ELBO {record.train_neg_elbo_nats:.2f}, validation {record.val_neg_elbo_nats:.2f}", seconds)
    return records


@torch.no_grad()
def digits(vae: VAE, seed: int) -> bytes:
    """Sampled digits, one grey byte for each pixel, with the same noise after each epoch."""
    generator = streams.stream(seed, "epoch samples", next(vae.parameters()).device)
    return vae.sample(SHOWN, generator).mul(255).round().byte().cpu().numpy().tobytes()


if __name__ == "__main__":
    command.run(main)
