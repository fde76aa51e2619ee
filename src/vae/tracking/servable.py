"""The servable model: its code, signature, input example and pinned requirements, as MLflow logs them."""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow import pyfunc
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model

from vae.errors import InputError
from vae.tracking.changes import ENVIRONMENTS, SECRETS
from vae.tracking.store import Store

LIBRARY = Path(__file__).parents[1]
REQUIREMENTS = ("mlflow", "numpy", "pillow", "pydantic", "pyyaml", "safetensors", "torch")  # of the served model
NOT_SERVED = ("evaluation", "runtime", "tracking", *ENVIRONMENTS, *SECRETS)  # no answer needs them
EXAMPLE: list[dict[str, Any]] = [{"task": "generate", "n": 1, "seed": 0}]
DESCRIPTION = (
    "Answers the tasks `generate`, `decode` and `reconstruct` with `images` (784 grey values in [0, 1], row by row) or "
    "`png`, and `encode` with `mu` and `logvar`: the mean and the log of the variance of each latent, in q(z|x)."
)
CALL = """
```
mlflow models serve -m {uri} --env-manager local --port 5001
curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' \\
  -d '{{"inputs": [{{"task": "generate", "n": 1, "format": "png"}}]}}'
```
"""


def requirements() -> list[str]:
    """The packages of the served model, pinned. A version such as 2.14.1+cpu, of a build that is in no package index
    but its own, is pinned as 2.14.1: each build of that version satisfies it."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]


def private_library(library: Path, folder: Path) -> Path:
    """Copies the code that answers need into `folder`, as a package that is named after its content.
    One process can then load models with different code, and import this library too. Returns the package."""
    paths = [path.relative_to(library) for path in sorted(library.rglob("*.py"))]
    served = [path for path in paths if not any(fnmatch(part, name) for part in path.parts for name in NOT_SERVED)]
    texts = {path: (library / path).read_text() for path in served}
    digest = hashlib.sha256(json.dumps({str(path): text for path, text in texts.items()}).encode())
    package = folder / f"{library.name}_{digest.hexdigest()[:12]}"
    imports = re.compile(rf"^(\s*(?:from|import) ){library.name}\b", flags=re.MULTILINE)
    for path, text in texts.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(imports.sub(rf"\g<1>{package.name}", text))
    return package


@contextmanager
def importable(package: Path) -> Iterator[None]:
    """Lets MLflow import a package while it logs the model, which then has its own copy."""
    sys.path.insert(0, str(package.parent))
    try:
        yield
    finally:
        sys.path.remove(str(package.parent))
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]


def save(path: Path, description: Model, example: list[dict[str, Any]], **options: Any) -> None:
    """Fills the folder of a model, like `pyfunc.save_model`, but saves the input example without running it. That would
    import torch. Tests run it."""
    pyfunc.save_model(path, mlflow_model=description, **options)
    files = {"artifact_path": "input_example.json", "serving_input_path": "serving_input.json"}
    for name, content in (("artifact_path", example), ("serving_input_path", {"inputs": example})):
        (path / files[name]).write_text(json.dumps(content))
    description.saved_input_example_info = files | {"type": "json_object"}
    description.save(str(path / "MLmodel"))


@contextmanager
def packed(model: Path) -> Iterator[dict[str, Any]]:
    """The options with which MLflow saves a model file and the code that answers with it."""
    with tempfile.TemporaryDirectory() as folder, importable(package := private_library(LIBRARY, Path(folder))):
        yield {
            "python_model": package / "serving/requests.py",
            # A copy, because MLflow refuses a link out of the folder, and the file may be a link into DVC's cache.
            "artifacts": {"model": shutil.copy(model, folder)},
            "code_paths": [str(package)],
            "example": EXAMPLE,
            "pip_requirements": requirements(),
        }


def log_model(store: Store, run_id: str, model: Path, params: Mapping[str, Any]) -> str:
    """Logs the servable model with its signature, input example and pinned requirements. Returns its URI.
    Its name says data set, architecture and prior. The run gets the model when its files are there, so a run has no
    half of a model. An attempt that was cut short is continued."""
    name = "-".join(params[key] for key in ("data.name", "model.architecture", "model.prior"))
    texts = {key: str(value) for key, value in params.items()}
    logged = store.begun_model(run_id) or mlflow.initialize_logged_model(name, run_id, params=texts)
    description = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
    with packed(model) as options, tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model", description, **options)
        store.log_model_artifacts(logged.model_id, f"{folder}/model")
    store.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    store.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return f"models:/{logged.model_id}"


def check(model: Path) -> None:
    """Answers the input example with a model file. Raises InputError if the present code cannot."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with packed(model) as options:
                save(Path(folder) / "model", Model(), **options)
            pyfunc.load_model(f"{folder}/model").predict(EXAMPLE)
        except Exception as error:
            raise InputError(
                f"{LIBRARY.name}/serving: the present code does not answer: {' '.join(str(error).split())}; "
                "nothing was logged or registered"
            ) from error
