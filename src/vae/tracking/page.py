"""What MLflow's pages show first: the name and the note of a run, and the saved view of the experiment."""

import argparse
import json
import os
import re
import time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from vae.tracking.experiments import settings
from vae.tracking.state import State
from vae.tracking.store import CHAMPION_METRIC, Store, Tag
from vae.tracking.worktree import git

VIEW = "vae"  # the name and the key of the saved view
VIEW_TAG, SHOWN_TAG = f"mlflow.sharedViewState.{VIEW}", "vae.shown"
FIGURES = (CHAMPION_METRIC, "nll_iw_nats", "neg_elbo_nats", "frechet_binary")  # the first columns and cards
ALWAYS = ("data.name", "data.binarization")  # columns
MOST_WORDS, MOST_SHOWN = 4, 12  # changed parameters in the name of a run, and columns or pictures in the view
SECTIONS = {"figures": ("Which model is best", 3), "pictures": ("Pictures", 1)}  # title, and cards in a row
LINE = {"lineSmoothness": 0, "useGlobalLineSmoothing": True, "useGlobalXaxisKey": True, "xAxisKey": "step"}
AXIS = {"type": "METRIC"}  # without a type, the chart has no points
ABOUT = (
    "Each run is one state of the DVC pipeline: parameters, data, curves, figures, pictures and model. Choose models "
    f"by `{CHAMPION_METRIC}`. Figures compare only between runs with the same data set, binarization and images. The "
    f"saved view `{VIEW}`, which `make ui` opens, has the columns and cards that matter."
)
Changed = dict[str, tuple[str, str]]  # the committed and the present value of a parameter, by its full name


def dvc_command() -> tuple[int, str]:
    """When the command of DVC that runs this stage started, in milliseconds, and the message that it got with -m."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("-m", "--message", default="")
    with suppress(psutil.Error):  # it has just ended, or is another user's
        for process in psutil.Process().parents():
            words = process.cmdline()
            if "dvc" in (names := [Path(word).name for word in words[:3]]):
                given, _ = options.parse_known_args(words[names.index("dvc") + 1 :])
                return int(process.create_time() * 1000), given.message
    return int(time.time() * 1000), ""


def changed_params(params: Path) -> Changed:
    """The parameters of the stages that are not as in the commit from which the DVC experiment started."""
    before = settings(os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD", params)
    return {
        name: (before.get(name, "none"), value)
        for name, value in settings("", params).items()
        if before and not name.startswith("track.") and before.get(name) != value
    }


def run_name(state: State, changed: Changed) -> str:
    """The name of the DVC experiment if the user gave it, else the changed parameters, else data set and key."""
    name = os.environ.get("DVC_EXP_NAME", "")
    if name and not generated(name):
        return name
    count = Counter(key for _, section in state.config for key in type(section).model_fields)
    short = {name: key if count[key := name.partition(".")[2]] == 1 else name for name in changed}
    words = [new if name == "data.name" else f"{short[name]}={new}"[:60] for name, (_, new) in changed.items()]
    more = [f"{len(words) - MOST_WORDS} more"] if len(words) > MOST_WORDS else []
    return ", ".join(words[:MOST_WORDS] + more) or f"{state.config.data.name}-{state.key[:7]}"


def generated(name: str) -> bool:
    """Whether DVC made up the name of an experiment, from an adjective and a noun of its own lists."""
    spec = find_spec("dvc")  # its source is read as text, because an import takes a second
    folders = spec.submodule_search_locations if spec else None
    if not folders or not re.fullmatch("[a-z]+-[a-z]+", name):
        return False
    text = Path(folders[0], "repo/experiments/utils.py").read_text()
    return all(f"'{word}'" in text for word in name.split("-"))


def remote(root: Path) -> str:
    """The address of the git remote without name, password and token. Empty if it is a folder, or there is none."""
    text = git("config", "--default", "", "--get", "remote.origin.url", folder=root).decode().strip()
    url = urlsplit(text)
    if url.scheme in ("http", "https", "ssh", "git"):
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    return text if re.fullmatch(r"[\w.-]+@[\w.-]+:[\w./~-]+", text) else ""


def note(name: str, run_id: str, state: State, tags: dict[str, str], changed: Changed, test: dict, best: dict) -> str:
    """The description of a run in Markdown: its figures, and what they are of; its changes, and how to repeat it.
    `test` and `best` are the contents of metrics/evaluation.json and metrics/validation.json."""
    data, experiment, message = state.config.data, tags.get(Tag.EXPERIMENT, name), tags.get(Tag.MESSAGE)
    labels = {"nll_iw_nats": f"NLL bound (K={test.get('importance_samples')})", "neg_elbo_nats": "neg-ELBO"}
    errors = {key: test.get(f"{key}_stderr", 0) for key in labels}
    figures = [f"{label} **{test[key]:.2f}** ± {errors[key]:.2f}" for key, label in labels.items() if key in test]
    differs = ", ".join(f"`{name}: {new}` (committed: `{old}`)" for name, (old, new) in changed.items())
    machine = [tags[key] for key in ("machine.cpu", "machine.device", "model.precision") if "machine.cpu" in tags]
    title = f"**{name}**{f' (experiment {experiment})' * (experiment != name)}{f': {message}' if message else ''}\n"
    return f"""{title}
- Test, nats per image: {", ".join(figures)}. Validation: neg-ELBO **{best[CHAMPION_METRIC]:.2f}**.
- Measured on `{data.name}`, binarization `{data.binarization}`: {test.get("test_images")} test images (pixels
  `{test.get("binarization_sha256", "")[:8]}`), {best["validation_images"]} validation images. Nats of another data
  set, binarization or split do not compare.
- Differs from the committed params.yaml: {differs or "nothing"}.
- Code: {tags[Tag.COMMIT][:7]}{" with changes" * (tags[Tag.DIRTY] == "true")} {tags.get(Tag.REMOTE, "")}
- Trained on: {", ".join(machine) or "a machine that is not known, because the model came from the cache"}
- Run it again: `make reproduce RUN={run_id}`"""


def describe(store: Store, changed: Changed | None = None, pictures: list[str] | None = None) -> str:
    """Gives the experiment its kind, description and saved view, if they are missing, and the view its new columns and
    pictures. Returns the part of the UI's address that opens the experiment with this view."""
    tags, identity = store.experiment.tags, store.experiment.experiment_id
    old: list[list[str]] = json.loads(tags.get(SHOWN_TAG, "[[], []]"))
    wanted = [name for name in changed or {} if name not in ALWAYS], pictures or []
    new = [list(dict.fromkeys([*had, *names]))[-MOST_SHOWN:] for had, names in zip(old, wanted, strict=True)]
    metric = "mlflow.experiment.primaryMetric"
    fixed = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": ABOUT}
    fixed |= {f"{metric}.name": CHAMPION_METRIC, f"{metric}.greaterIsBetter": "False"}
    for name, value in (fixed | {VIEW_TAG: view(*new), SHOWN_TAG: json.dumps(new)}).items():
        if name not in tags or (new != old and name not in fixed):
            store.set_experiment_tag(identity, name, value)
    return f"#/experiments/{identity}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def view(params: list[str], pictures: list[str]) -> str:
    """The saved view, as MLflow's UI writes it: the columns of the list, and the cards of the charts in their order."""
    columns = [f"metrics.`{name}`" for name in FIGURES] + [f"params.`{name}`" for name in (*ALWAYS, *params)]
    best, *others = FIGURES
    cards: list[dict[str, Any]] = [{"type": "LINE", "metricKey": best, **LINE}]
    cards += [{"type": "BAR", "metricKey": name} for name in others]
    cards += [{"type": "SCATTER", "xaxis": AXIS | {"key": "rate_nats"}, "yaxis": AXIS | {"key": "distortion_nats"}}]
    cards += [{"type": "PARALLEL", "selectedParams": params, "selectedMetrics": [best]}] if params else []
    cards += [{"type": "IMAGE", "imageKeys": [name], "step": 0, "showRunParams": False} for name in pictures]
    for number, card in enumerate(cards):
        card |= {"uuid": str(number), "metricSectionId": "pictures" if card["type"] == "IMAGE" else "figures"}
        card["runsCountToCompare"] = 10
    sections = [
        {"uuid": part, "name": name, "display": True, "isReordered": True, "columns": columns}
        for part, (name, columns) in SECTIONS.items()
    ]
    state = {"orderByKey": columns[0], "orderByAsc": True, "columnOrder": columns}
    state |= {"selectedColumns": [*columns, "attributes.`Duration`"], "isAccordionReordered": True}
    state |= {"compareRunCharts": cards, "compareRunSections": sections}
    now = int(time.time() * 1000)
    return json.dumps({"name": VIEW, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
