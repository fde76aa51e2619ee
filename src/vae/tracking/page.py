"""What MLflow's pages show first: the name and the note of a run, and the saved view of the experiment."""

import argparse
import json
import os
import re
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import yaml

from vae.errors import InputError
from vae.params import NOT_IN_PIPELINE
from vae.tracking.state import State
from vae.tracking.store import CHAMPION_METRIC, Store, Tag
from vae.tracking.worktree import git

VIEW = "vae"  # the key of the saved view in its address
VIEW_TAG, CHANGED_TAG = f"mlflow.sharedViewState.{VIEW}", "vae.changed_params"
FIGURES = (CHAMPION_METRIC, "nll_iw_nats", "neg_elbo_nats", "frechet_binary")  # the first columns and cards
MOST_WORDS, MOST_COLUMNS = 4, 12  # in the name of a run; of the view, for parameters
ABOUT = (
    "Each run is one state of the DVC pipeline: parameters, data, curves, figures, pictures and model. Choose models "
    f"by `{CHAMPION_METRIC}`. Figures compare only between runs with the same data set, binarization and images. The "
    f"saved view `{VIEW}`, which `make ui` opens, has the columns and cards that matter."
)
LINE = {"lineSmoothness": 0, "useGlobalLineSmoothing": True, "useGlobalXaxisKey": True, "xAxisKey": "step"}
Changed = dict[str, tuple[str, str]]  # committed and present value of a parameter, by its full name


class Command(NamedTuple):
    """The command of DVC that runs this stage."""

    started: int  # milliseconds since 1970
    message: str  # that was given with -m


def command() -> Command:
    """The nearest command of DVC around this process. Now, and no message, if there is none."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("-m", "--message", default="")
    try:
        for process in psutil.Process().parents():
            words = process.cmdline()
            if "dvc" in (names := [Path(word).name for word in words[:3]]):
                given, _ = options.parse_known_args(words[names.index("dvc") + 1 :])
                return Command(int(process.create_time() * 1000), given.message)
    except psutil.Error:
        pass  # it has just ended, or is another user's
    return Command(int(time.time() * 1000), "")


def changed_params(params: Path) -> Changed:
    """The parameters of the stages that are not as in the commit from which the DVC experiment started."""
    try:
        committed = _leaves(git("show", f"{os.environ.get('DVC_EXP_BASELINE_REV') or 'HEAD'}:./{params}"))
    except InputError:
        return {}  # the commit has no params.yaml
    present = _leaves(params.read_bytes())
    return {name: (committed.get(name, "none"), new) for name, new in present.items() if committed.get(name) != new}


def _leaves(text: bytes) -> dict[str, str]:
    """The parameters of the stages as text, from a params.yaml that may be of another version of this project."""
    tree = yaml.load(text, yaml.BaseLoader)
    sections = {name: keys for name, keys in tree.items() if name not in NOT_IN_PIPELINE | {"track"}}
    return {
        f"{name}.{key}": str(value).replace("'", "") for name, keys in sections.items() for key, value in keys.items()
    }


def run_name(state: State, changed: Changed) -> str:
    """The name of the DVC experiment if the user gave it, else the changed parameters, else data set and key."""
    name = os.environ.get("DVC_EXP_NAME", "")
    if name and not generated(name):
        return name
    count = Counter(key for _, section in state.config for key in type(section).model_fields)
    short = {name: key if count[key := name.partition(".")[2]] == 1 else name for name in changed}
    words = [f"{short[name]}={new}"[:60] if name != "data.name" else new for name, (_, new) in changed.items()]
    more = [f"{len(words) - MOST_WORDS} more"] if len(words) > MOST_WORDS else []
    return ", ".join(words[:MOST_WORDS] + more) or f"{state.config.data.name}-{state.key[:7]}"


def generated(name: str) -> bool:
    """Whether DVC made up the name of an experiment. It takes an adjective and a noun from its own lists."""
    if not re.fullmatch("[a-z]{5}-[a-z]{4}", name):
        return False
    spec = find_spec("dvc")  # read as text, because an import takes a second
    source = Path(next(iter(spec.submodule_search_locations or []), "")) / "repo/experiments/utils.py" if spec else None
    text = source.read_text() if source and source.is_file() else ""
    return all(f"'{word}'" in text for word in name.split("-"))


def remote(root: Path) -> str:
    """The address of the git remote without name, password and token. Empty if it is a folder, or there is none."""
    text = git("config", "--default", "", "--get", "remote.origin.url", folder=root).decode().strip()
    url = urlsplit(text)
    if url.scheme in ("http", "https", "ssh", "git"):
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    return text if re.fullmatch(r"[\w.-]+@[\w.-]+:[\w./~-]+", text) else ""


def note(run_id: str, state: State, tags: dict[str, str], changed: Changed, evaluation: dict, validation: dict) -> str:
    """The description of a run in Markdown: its figures, and what they are of; its changes, and how to repeat it."""
    config, message = state.config, tags.get(Tag.MESSAGE)
    names = (f"NLL bound, K={evaluation.get('importance_samples')}", "nll_iw_nats"), ("neg-ELBO", "neg_elbo_nats")
    of_test = [
        f"{label}: **{evaluation[name]:.2f}** ± {evaluation.get(f'{name}_stderr', 0):.2f}"
        for label, name in names
        if name in evaluation
    ]
    pixels = evaluation.get("binarization_sha256", "")[:8]
    differs = [f"`{name}: {new}` (committed: `{old}`)" for name, (old, new) in changed.items()]
    code = f"{tags[Tag.COMMIT][:7]}{' of ' + tags[Tag.REMOTE] if Tag.REMOTE in tags else ''}"
    machine = [tags[name] for name in ("machine.cpu", "machine.device", "model.precision") if name in tags]
    lines = [
        f"**{tags.get(Tag.EXPERIMENT, 'dvc repro')}**{': ' + message if message else ''}",
        f"Test, nats per image: {'; '.join(of_test)}",
        f"Validation neg-ELBO: **{validation[CHAMPION_METRIC]:.2f}**",
        f"Of {config.data.name}, {config.data.binarization} binarization: {evaluation.get('test_images', '?')} test images (pixels "
        f"`{pixels}`), {validation['validation_images']} validation images. Figures of other data, pixels or images do not compare.",
        f"Differs from the committed params.yaml: {', '.join(differs) or 'nothing'}",
        f"Again: `make reproduce RUN={run_id}`",
        f"Code: commit {code}{', with uncommitted changes' if tags.get(Tag.DIRTY) == 'true' else ''}",
        *([f"Trained on: {', '.join(machine)}"] if machine else []),
    ]
    return "\n\n".join(lines[:1] + ["\n".join(f"- {line}" for line in lines[1:])])


def describe(store: Store, changed: Changed | None = None, pictures: list[str] | None = None) -> str:
    """Gives the experiment its kind, its description and the saved view, if they are missing. The view gets columns
    for newly changed parameters. Returns the part of the UI's address that opens the experiment with this view."""
    present = store.experiment.tags
    old = json.loads(present.get(CHANGED_TAG, '{"params": [], "pictures": []}'))
    names = {"params": list(changed or {}), "pictures": pictures or []}
    new = {part: list(dict.fromkeys([*names[part], *old[part]]))[:MOST_COLUMNS] for part in names}
    new = {part: old[part] if set(new[part]) == set(old[part]) else new[part] for part in new}
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": CHAMPION_METRIC,
        "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
        "mlflow.note.content": ABOUT,
        VIEW_TAG: view(**new),
        CHANGED_TAG: json.dumps(new),
    }
    for name, value in tags.items():
        if name not in present or (new != old and name in (VIEW_TAG, CHANGED_TAG)):
            store.set_experiment_tag(store.experiment.experiment_id, name, value)
    return f"#/experiments/{store.experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def view(params: list[str], pictures: list[str]) -> str:
    """The saved view, as MLflow's UI writes it: the columns of the list, and the cards of the charts in their order."""
    cards: list[dict[str, Any]] = []
    metrics, parameters = (
        [f"metrics.`{name}`" for name in FIGURES],
        [f"params.`{name}`" for name in ("data.name", *params)],
    )

    def card(kind: str, section: str, **options: Any) -> None:
        common = {"runsCountToCompare": 10, "deleted": False, "isGenerated": False}
        cards.append({"uuid": f"{VIEW}-{len(cards)}", "type": kind, "metricSectionId": section, **common, **options})

    for name in FIGURES:
        card(
            "LINE" if name == CHAMPION_METRIC else "BAR",
            "figures",
            metricKey=name,
            displayName=name,
            **(LINE if name == CHAMPION_METRIC else {}),
        )
    axes = {
        axis: {"key": name, "type": "METRIC"} for axis, name in (("xaxis", "rate_nats"), ("yaxis", "distortion_nats"))
    }
    card("SCATTER", "figures", displayName="rate and distortion", **axes)
    if params:
        card("PARALLEL", "figures", selectedParams=params, selectedMetrics=[CHAMPION_METRIC], showAllRuns=True)
    for name in pictures:
        card("IMAGE", "pictures", imageKeys=[name], displayName=name, step=0, showRunParams=False)
    names = {
        "figures": "Which model is best",
        "pictures": "Pictures",
        "rest": "Model metrics",
        "system": "System metrics",
    }
    state = {
        "orderByKey": metrics[0],
        "orderByAsc": True,
        "selectedColumns": [*metrics, *parameters, "attributes.`Duration`"],
        "columnOrder": [*metrics, *parameters],
        "compareRunCharts": cards,
        "compareRunSections": [
            {
                "uuid": part,
                "name": name,
                "display": True,
                "isReordered": True,
                "columns": 1 if part == "pictures" else 3,
            }
            for part, name in names.items()
        ],
        "isAccordionReordered": True,
    }
    now = int(time.time() * 1000)
    return json.dumps({"name": VIEW, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
