"""Experiments that belong together are the children of one MLflow run: a sweep, the seeds of a model, or a search."""

from vae.runtime.repository import COPIES

import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mlflow.entities import Run

from vae.tracking.store import CHAMPION_METRIC, SOURCE, Store, Tag

CHILD = "mlflow.parentRunId"  # the tag by which the UI shows a run below another one
COUNTED = 200  # children on the page of a parent, the best first: the page is written again with each of them
SEED = "train.seed"


def group() -> str | None:
    """The group of the present DVC experiment, or None if it is on its own.
    An experiment `wide-3` belongs to `wide`: DVC counts like this in a queue, recipes count seeds, and a search counts
    trials. Queued experiments that the user has not named belong to the commit from which they started."""
    name, copies = os.environ.get("DVC_EXP_NAME", ""), Path(os.environ.get("DVC_ROOT", "."), COPIES).resolve()
    if counted := re.fullmatch(r"([\w.@+-]+)-\d+", name):
        return counted[1]
    here = Path().resolve()
    queued = here.is_relative_to(copies) and here.relative_to(copies).parts[0] != "standalone"  # that one is --temp
    return f"queue-{os.environ['DVC_EXP_BASELINE_REV'][:7]}" if name and queued else None


def parent(store: Store, name: str) -> Run:
    """The parent run of a group, created if it is missing. The caller holds the lock of the store.
    If two machines have created one at the same time, it is the older one."""
    if not (found := store.find({Tag.GROUP: name})):
        tags = {Tag.GROUP: name, "mlflow.source.name": SOURCE}
        run = store.create_run(store.experiment.experiment_id, tags=tags, run_name=name)
        store.set_terminated(run.info.run_id)  # it has no process of its own, which could end it later
        found = store.find({Tag.GROUP: name})
    return min(found, key=lambda run: (run.info.start_time, run.info.run_id))


def groups(run: Run) -> set[str]:
    """The groups of a run. A state has one run, and so it may be in several groups."""
    return {name for name in run.data.tags.get(Tag.GROUPS, "").split(",") if name}


def join(store: Store, run_id: str) -> str:
    """Makes a run a child of the parent of the present experiment's group, if it has one, and brings the page of the
    parent up to date. The UI shows a run of several groups below the parent of the first. Returns the id of the run."""
    if name := group():
        run, above = store.get_run(run_id), parent(store, name)
        first = run.data.tags.get(CHILD, above.info.run_id)
        store.set_tags(run_id, {Tag.GROUPS: ",".join(sorted(groups(run) | {name})), CHILD: first})
        if run.info.status == "FINISHED":
            summarize(store, above)
    return run_id


def summarize(store: Store, above: Run) -> None:
    """Writes the table, the figures and the pictures of a group to its parent run, `above`.
    Models that differ only in their seed are one line: the mean and the deviation of their figures."""
    run_id, name = above.info.run_id, above.data.tags[Tag.GROUP]
    condition, order = f"tags.`{Tag.GROUPS}` LIKE '%{name}%'", [f"metrics.{CHAMPION_METRIC} ASC"]
    found = store.search_runs([store.experiment.experiment_id], condition, max_results=COUNTED, order_by=order)
    children = [run for run in found if name in groups(run)]
    whole = [run for run in children if run.info.status == "FINISHED"]
    keys = {key for run in whole for key in run.data.params if len({item.data.params.get(key) for item in whole}) > 1}
    swept, models = sorted(keys - {SEED}), dict[tuple[str, ...], list[float]]()
    for run in whole:
        model = tuple(run.data.params.get(key, "") for key in swept)
        models.setdefault(model, []).append(run.data.metrics[CHAMPION_METRIC])
    ranked = sorted(models.items(), key=lambda item: mean(item[1]))
    rows = [[*swept, "seeds", CHAMPION_METRIC, "deviation"], ["---"] * (len(swept) + 3)]
    for model, seen in ranked:
        rows.append(
            [*map(short, model), str(len(seen)), f"{mean(seen):.2f}", f"{stdev(seen):.2f}" if len(seen) > 1 else ""]
        )
    pruned = sum(Tag.PRUNED in run.data.tags for run in children)
    counts = f"{len(whole)} runs are complete, {pruned} were pruned{', of the best' * (len(found) == COUNTED)}"
    note = "\n".join([counts, "", *(f"| {' | '.join(row)} |" for row in rows)])
    store.set_tags(run_id, {"mlflow.note.content": note})
    if ranked:
        best = ranked[0][1]
        deviation = {f"group/{CHAMPION_METRIC}_deviation": stdev(best)} if len(best) > 1 else {}
        store.log_metrics(run_id, [(len(whole), {f"group/best_{CHAMPION_METRIC}": mean(best)} | deviation)])
    if swept:
        draw(store, run_id, swept, sorted(whole, key=lambda run: run.info.start_time))
    store.set_terminated(run_id)  # with the present time


def draw(store: Store, run_id: str, keys: list[str], runs: list[Run]) -> None:
    """Writes pictures to a run: which parameters the other runs have, which of them matter, and the best so far."""
    import matplotlib
    import optuna  # imported here, because few runs are in a group

    matplotlib.use("Agg")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler())
    columns, kinds = dict[str, list[Any]](), dict[str, optuna.distributions.BaseDistribution]()
    for key in keys:
        columns[key] = [run.data.params.get(key, "") for run in runs]
        kinds[key] = optuna.distributions.CategoricalDistribution([*dict.fromkeys(columns[key])])
        with suppress(ValueError):  # it is no number
            columns[key] = [float(text) for text in columns[key]]
            low, high = min(columns[key]), max(columns[key])
            kinds[key] = optuna.distributions.FloatDistribution(low, high, log=0 < low < high / 10)
    for run, *values in zip(runs, *columns.values(), strict=True):
        here, figure = dict(zip(keys, values, strict=True)), run.data.metrics[CHAMPION_METRIC]
        study.add_trial(optuna.create_trial(params=here, distributions=kinds, value=figure))
    with warnings.catch_warnings(), suppress(ValueError, RuntimeError):  # too few runs, or all of the same figure
        warnings.simplefilter("ignore")  # optuna calls its pictures experimental
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as pictures

        for kind in ("parallel_coordinate", "optimization_history", "param_importances"):
            axes = getattr(pictures, f"plot_{kind}")(study, target_name=CHAMPION_METRIC)
            axes.figure.set_size_inches(10, 5)
            store.log_figure(run_id, axes.figure, f"{kind}.png", save_kwargs={"bbox_inches": "tight"})
            pyplot.close(axes.figure)


def short(text: str) -> str:
    """A parameter for a table: a number with five digits at most."""
    with suppress(ValueError):
        return f"{float(text):.5g}"
    return text
