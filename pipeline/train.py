"""Stage `train`: fits the VAE, streams each epoch to MLflow while it runs, and resumes where it was killed."""

from vae import command, live

OBSERVER = live.start()  # before the imports below: torch and mlflow are then imported side by side

import csv
import json
import sys
import time
from dataclasses import astuple
from pathlib import Path

import torch
from tqdm import tqdm

from vae import checkpoint, cores, data, device, model, training
from vae.params import Params, load

SHOWN = 64  # digits of the picture that follows the training


def build(params: Params, train: torch.Tensor) -> training.Fit:
    """A fresh model and the state of its training, from the seed and the training images alone."""
    torch.manual_seed(params.train.seed)  # torch's initializers take no generator
    fresh = model.VAE(params.model).to(train.device)
    if params.train.initial_bias == "data-mean":
        training.start_at_mean(fresh, train)
    return training.Fit(fresh, params.train)


def main(params: Path, data_folder: Path, model_path: Path, curves: Path, validation_path: Path, run: Path) -> None:
    """Fits the VAE."""
    # A training that runs opens a run, so the stage that completes it must run too, although in a fresh clone the
    # results may be bit for bit those of the lock file.
    run.unlink(missing_ok=True)
    config = load(params)
    place = device.choose(config.train.device)
    torch.set_num_threads(config.train.threads)
    images = data.load(data_folder, "train").images.to(place)
    train, validation = data.split_validation(images, config.data.validation)
    state = build(config, train)

    sections = config.model_dump_json(include={"data", "model", "train"})
    key = checkpoint.training_key(sections, [*data_folder.iterdir(), Path(__file__)])
    root = checkpoint.repository()
    with checkpoint.checkpoint(root, key) as saved:
        with live.follow(OBSERVER, params, root, key, saved.own) as live_run:
            records = fit(state, train, validation, config, saved, live_run)
            write(curves, records)
            chosen = {"val_neg_elbo_nats": records[-1].val_neg_elbo_nats}  # what sweeps are sorted by
            validation_path.write_text(json.dumps(chosen, indent=2) + "\n")
            model.save(state.model, model_path)
            live_run.trained()
        saved.finish(model_path)  # when nothing can fail any more
    last = records[-1]
    print(f"validation neg-ELBO {last.val_neg_elbo_nats:.2f} nats, training {last.train_neg_elbo_nats:.2f}")
    if complaint := training.collapse(last):
        print(f"warning: {complaint}", file=sys.stderr)


def fit(
    state: training.Fit,
    train: torch.Tensor,
    validation: torch.Tensor,
    config: Params,
    saved: checkpoint.Checkpoint,
    live_run: live.Run,
) -> list[training.Record]:
    """Goes through the epochs that a checkpoint leaves, each of them kept and followed; returns the records of all."""
    records = []
    if resumed := saved.load():
        state.load_state_dict(resumed["fit"])
        records = [training.Record(*row) for row in resumed["records"]]
        print(f"resuming after epoch {state.epoch}")
    epochs = training.fit(state, train, validation, config.data.binarization)
    with tqdm(total=state.schedule.epochs, initial=state.epoch, unit="epoch", disable=None) as bar:
        while state.epoch < state.schedule.epochs:
            with cores.turn(config.train.threads):
                started = time.monotonic()
                record = next(epochs)
                seconds = time.monotonic() - started
            records.append(record)
            saved.save({"fit": state.state_dict(), "records": [astuple(row) for row in records]})
            live_run.log(record, seconds)
            if record.epoch.bit_count() == 1:  # 1, 2, 4, 8, ...: as training slows down, so do the pictures
                live_run.show(record.epoch, digits(state.model, config.train.seed))
            bar.set_postfix_str(f"ELBO {-record.train_neg_elbo_nats:.2f}, validation {-record.val_neg_elbo_nats:.2f}")
            bar.update()
    return records


@torch.no_grad()
def digits(vae: model.VAE, seed: int) -> bytes:
    """Mean images of samples of the prior, a byte of grey for each pixel; the noise is the same after each epoch."""
    generator = torch.Generator(next(vae.parameters()).device).manual_seed(seed)
    means = torch.sigmoid(vae.decode(vae.prior.sample(SHOWN, generator)))  # (N, P)
    return means.mul(255).round().byte().cpu().numpy().tobytes()


def write(path: Path, records: list[training.Record]) -> None:
    """Writes metrics/train.csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(training.COLUMNS)
        writer.writerows(map(astuple, records))


if __name__ == "__main__":
    command.run(main)
