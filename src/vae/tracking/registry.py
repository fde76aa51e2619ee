"""The servable model: how it is logged, how it is registered, and which version is the champion."""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import pyfunc
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from vae.params import Params
from vae.tracking.store import CHAMPION_METRIC, Store

CHAMPION, SPLIT = "champion", "data.validation"
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")  # of the served model
LIBRARY = Path(__file__).parents[1]
NOT_SERVED = shutil.ignore_patterns("__pycache__", "evaluation", "runtime", "tracking")  # code that no answer needs


class Servable:
    """The pyfunc flavor, but it saves the input example without running it, which would import torch. Tests run it."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, example: list[dict[str, Any]], **options: Any) -> None:
        """Fills the folder of the model. `Model.log` calls this."""
        options.pop("validate_serving_input")  # an option that `Model.log` passes on
        pyfunc.save_model(path, mlflow_model=mlflow_model, **options)
        info = {
            "artifact_path": "input_example.json",
            "type": "json_object",
            "serving_input_path": "serving_input.json",
        }
        for name, content in (("artifact_path", example), ("serving_input_path", {"inputs": example})):
            (Path(path) / info[name]).write_text(json.dumps(content))
        mlflow_model.saved_input_example_info = info
        mlflow_model.save(str(Path(path) / "MLmodel"))


def log_model(run_id: str, model: Path) -> str:
    """Logs the servable model with its signature, input example and pinned requirements. Returns its URI."""
    with tempfile.TemporaryDirectory() as folder:
        library = shutil.copytree(LIBRARY, Path(folder, LIBRARY.name), ignore=NOT_SERVED)
        return Model.log(
            artifact_path=None,
            name="model",
            flavor=Servable,
            flavor_name="pyfunc",
            run_id=run_id,
            validate_serving_input=False,
            python_model=library / "serving/requests.py",
            artifacts={"model": str(model)},
            code_paths=[str(library)],
            example=[{"task": "generate", "n": 1, "seed": 0}],
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        ).model_uri


def registered_name(config: Params) -> str:
    """The registered model: one for each data set and binarization, because nats of different pixels do not compare."""
    name = f"{config.track.registered_model}-{config.data.name}"
    return f"{name}-grey" if config.data.binarization == "none" else name


def register(store: Store, config: Params, run_id: str, uri: str, value: float) -> None:
    """Registers the model of a run. It becomes the champion if it beats the present one on the validation split.
    A champion that cannot be loaded is none."""
    name = registered_name(config)
    if not store.search_registered_models(f"name = '{name}'"):
        store.create_registered_model(name)
    split = str(config.data.validation)
    present = store.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    scored = {CHAMPION_METRIC: repr(value), SPLIT: split}
    model_id = uri.rpartition("/")[2]  # an MLflow server requires model_id; a database does not
    registered = [version for version in present if version.source == uri]
    new = registered[0] if registered else store.create_model_version(name, uri, run_id, scored, model_id=model_id)
    if lost := lost_champion(store, name):
        print(f"{name} version {lost.version}, the champion, cannot be loaded; {replace_champion(store, lost)}")
    champion = store.get_registered_model(name).aliases.get(CHAMPION)
    tags, better = store.get_model_version(name, champion).tags if champion else {}, champion is None
    if champion is None:
        verdict = "it is the first champion"
    elif str(champion) == str(new.version):
        verdict = "it is the champion"
    elif tags.get(SPLIT, split) != split:
        verdict = f"not compared with the champion (version {champion}): it was scored on another {SPLIT}"
    elif CHAMPION_METRIC not in tags:
        verdict = f"not compared with the champion (version {champion}): it was chosen by hand"
    else:
        best = float(tags[CHAMPION_METRIC])
        better = value < best
        compared = "the new champion, better than" if better else "not better than the champion,"
        verdict = f"it is {compared} version {champion} with {best:.2f}"
    if better:
        store.set_registered_model_alias(name, CHAMPION, new.version)
    print(f"registered {name} version {new.version}: {CHAMPION_METRIC} {value:.2f}; {verdict}")


def lost_champion(store: Store, name: str) -> ModelVersion | None:
    """The champion of a registered model if it cannot be loaded."""
    number = store.get_registered_model(name).aliases.get(CHAMPION)
    champion = store.get_model_version(name, number) if number else None
    return champion if champion and not _loads(store, champion) else None


def replace_champion(store: Store, lost: ModelVersion) -> str:
    """Makes the best version that can be loaded, on the same validation split, the champion. Returns what happened."""
    split = lost.tags.get(SPLIT)
    scored = [item for item in store.search_model_versions(f"name = '{lost.name}'") if CHAMPION_METRIC in item.tags]
    rivals = [item for item in scored if split in (None, item.tags.get(SPLIT))]
    ranked = sorted(rivals, key=lambda item: float(item.tags[CHAMPION_METRIC]))
    if best := next((item for item in ranked if _loads(store, item)), None):
        store.set_registered_model_alias(lost.name, CHAMPION, best.version)
        return f"version {best.version} is the champion now"
    store.delete_registered_model_alias(lost.name, CHAMPION)
    return "there is no other, so there is no champion now"


def _loads(store: Store, version: ModelVersion) -> bool:
    """Whether the files of a version are there. A version that was not made from a logged model is not judged."""
    source = version.source or ""
    return not source.startswith("models:/m-") or store.loads(source)
