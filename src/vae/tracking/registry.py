"""The servable model: how it is logged, how it is registered, and which version is the champion."""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, pyfunc
from mlflow.models import Model

from vae.params import Params
from vae.tracking.store import CHAMPION_METRIC

CHAMPION, SPLIT = "champion", "data.validation"
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")  # of the served model
LIBRARY = Path(__file__).parents[1]


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


def copy_library(folder: Path) -> Path:
    """Copies the code that a served model needs: the files directly in src/vae, and serving/."""
    package = folder / LIBRARY.name
    for files in (LIBRARY, LIBRARY / "serving"):
        target = package / files.relative_to(LIBRARY)
        target.mkdir(parents=True)
        for file in files.glob("*.py"):
            shutil.copy(file, target)
    return package


def log_model(run_id: str, model: Path) -> str:
    """Logs the servable model with its signature, input example and pinned requirements. Returns its URI."""
    with tempfile.TemporaryDirectory() as folder:
        library = copy_library(Path(folder))
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


def register(client: MlflowClient, config: Params, run_id: str, uri: str, value: float) -> None:
    """Registers the model of a run. It becomes the champion if it beats the present one on the validation split."""
    name = registered_name(config)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    split = str(config.data.validation)
    present = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    scored = {CHAMPION_METRIC: repr(value), SPLIT: split}
    model_id = uri.rpartition("/")[2]  # an MLflow server requires model_id; a database does not
    new = present[0] if present else client.create_model_version(name, uri, run_id, scored, model_id=model_id)
    registered = f"registered {name} version {new.version}: {CHAMPION_METRIC} {value:.2f}"
    if champion is None:
        client.set_registered_model_alias(name, CHAMPION, new.version)
        print(f"{registered}; it is the first champion")
        return
    tags = client.get_model_version(name, champion).tags
    if tags.get(SPLIT, split) != split:
        print(f"{registered}; not compared with the champion (version {champion}): it was scored on another {SPLIT}")
        return
    if CHAMPION_METRIC not in tags:
        print(f"{registered}; not compared with the champion (version {champion}): it was chosen by hand")
        return
    best = float(tags[CHAMPION_METRIC])
    if value < best:
        client.set_registered_model_alias(name, CHAMPION, new.version)
    verdict = "the new champion, better than" if value < best else "not better than the champion,"
    print(f"{registered}; it is {verdict} version {champion} with {best:.2f}")
