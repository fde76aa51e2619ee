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

from mlflow import pyfunc
from mlflow.models import Model

from vae.errors import InputError
from vae.tracking.changes import ENVIRONMENTS, SECRETS

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


class Servable:
    """The pyfunc flavor, but it saves the input example without running it, which would import torch. Tests run it."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, example: list[dict[str, Any]], **options: Any) -> None:
        """Fills the folder of the model. `Model.log` calls this."""
        options.pop("validate_serving_input")  # an option that `Model.log` passes on
        pyfunc.save_model(path, mlflow_model=mlflow_model, **options)
        files = {"artifact_path": "input_example.json", "serving_input_path": "serving_input.json"}
        for name, content in (("artifact_path", example), ("serving_input_path", {"inputs": example})):
            (Path(path) / files[name]).write_text(json.dumps(content))
        mlflow_model.saved_input_example_info = files | {"type": "json_object"}
        mlflow_model.save(str(Path(path) / "MLmodel"))


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
            "validate_serving_input": False,
        }


def log_model(run_id: str, model: Path, params: Mapping[str, Any]) -> str:
    """Logs the servable model with its signature, input example and pinned requirements. Returns its URI.
    Its name says data set, architecture and prior."""
    name = "-".join(params[key] for key in ("data.name", "model.architecture", "model.prior"))
    with packed(model) as options:
        logged = Model.log(None, Servable, name=name, flavor_name="pyfunc", run_id=run_id, **options)
        return logged.model_uri


def check(model: Path) -> None:
    """Answers the input example with a model file. Raises InputError if the present code cannot."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with packed(model) as options:
                Servable.save_model(f"{folder}/model", Model(), **options)
            pyfunc.load_model(f"{folder}/model").predict(EXAMPLE)
        except Exception as error:
            raise InputError(
                f"{LIBRARY.name}/serving: the present code does not answer: {' '.join(str(error).split())}; "
                "nothing was logged or registered"
            ) from error
