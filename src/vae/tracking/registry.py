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
from vae.tracking.changes import ENVIRONMENTS, SECRETS
from vae.tracking.store import CHAMPION_METRIC

CHAMPION, SPLIT = "champion", "data.validation"
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")  # of the served model
LIBRARY = Path(__file__).parents[1]
UNUSED = ("__pycache__", "evaluation", "runtime", "tracking")  # code that no answer needs
NOT_SERVED = shutil.ignore_patterns(*UNUSED, *ENVIRONMENTS, *SECRETS)


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
    tags, better = client.get_model_version(name, champion).tags if champion else {}, champion is None
    if champion is None:
        verdict = "it is the first champion"
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
        client.set_registered_model_alias(name, CHAMPION, new.version)
    print(f"registered {name} version {new.version}: {CHAMPION_METRIC} {value:.2f}; {verdict}")
