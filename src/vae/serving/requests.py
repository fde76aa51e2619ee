"""The served API: the model that `mlflow.pyfunc.load_model` and `mlflow models serve` load.
MLflow loads this file as code, and the weights as safetensors. No pickle is executed."""

import sys
from functools import wraps
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, field_validator

from vae.errors import InputError
from vae.idx import PIXELS

MAX_DIGITS = 1000  # in one request
MAX_LATENT = 1e6  # far beyond any prior, and far below the largest float32
MOST_LETTERS = 900  # of an error, which MLflow begins with the whole request
FORMATS = ("list", "png")
NEEDS = {"generate": {"n"}, "reconstruct": {"images"}, "encode": {"images"}, "decode": {"latents"}}
MAY_HAVE = {"generate": {"seed", "format"}, "reconstruct": {"format"}, "encode": set(), "decode": {"format"}}


class Request(BaseModel):
    """One task and its arguments.
    Images are 784 grey values in [0, 1], row by row. Latents have the model's dimension. In Python, both may be arrays.
    Types are plain, because MLflow derives the signature from them. `check` has all other rules."""

    model_config = ConfigDict(extra="forbid")

    task: str
    n: int | None = None  # number of digits to generate
    seed: int | None = None  # without it, each answer has other digits
    format: str | None = None  # of the images in the answer: "list" or "png"
    images: list[list[float]] | None = None
    latents: list[list[float]] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Turns an array, a list of arrays, or a number of numpy into plain Python. (N, 28, 28) becomes (N, 784)."""
        if getattr(value, "ndim", 0) > 2:
            value = value.reshape(len(value), -1)
        rows = value if isinstance(value, list) else [value]
        plain = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        return plain if isinstance(value, list) else plain[0]


class Result(BaseModel):
    """The answer to a request, from which MLflow derives the signature. An answer has only the fields of its task."""

    images: list[list[float]] | None = None  # (N, 784) in [0, 1]
    png: list[str] | None = None  # N images of 28x28 as PNG files in base64
    mu: list[list[float]] | None = None  # (N, D), means of q(z|x)
    logvar: list[list[float]] | None = None  # (N, D), logs of the variances of q(z|x)


def check(request: Request) -> None:
    """Refuses a task that cannot be answered, in one line, which MLflow shows after the data.
    Raises InputError if the task is wrong, and the message says why."""
    if request.task not in NEEDS:
        raise InputError(f"task {request.task!r}: must be one of {', '.join(NEEDS)}")
    given = set(request.model_dump(exclude_none=True)) - {"task"}
    needs, may_have = NEEDS[request.task], MAY_HAVE[request.task]
    if not needs <= given <= needs | may_have:
        optional = f" and optionally {sorted(may_have)}" if may_have else ""
        raise InputError(f"task {request.task} takes {sorted(needs)}{optional}, got {sorted(given)}")
    if request.format is not None and request.format not in FORMATS:
        raise InputError(f"format {request.format!r}: must be one of {', '.join(FORMATS)}")
    if request.n is not None and not 1 <= request.n <= MAX_DIGITS:
        raise InputError(f"n: must be from 1 to {MAX_DIGITS}, got {request.n}")
    if request.seed is not None and not 0 <= request.seed < 2**63:
        raise InputError(f"seed: must be from 0 to 2^63 - 1, got {request.seed}")
    rows = request.images if request.images is not None else request.latents
    if rows is not None and not 1 <= len(rows) <= MAX_DIGITS:
        raise InputError(f"from 1 to {MAX_DIGITS} rows in one request, got {len(rows)}")
    for image in request.images or []:
        if len(image) != PIXELS:
            raise InputError(f"images: {PIXELS} values in [0, 1] each, got {len(image)}")
        if not all(0 <= grey <= 1 for grey in image):  # NaN fails too
            raise InputError(
                f"images: values in [0, 1] each, got from {min(image)} to {max(image)}; divide bytes by 255"
            )
    if not all(abs(value) <= MAX_LATENT for latent in request.latents or [] for value in latent):
        raise InputError(f"latents: every value must be finite, and at most {MAX_LATENT:,.0f} in size")


def refuse_in_server() -> None:
    """Lets MLflow's server, if it runs in this process, refuse with 400 what it fails on with 500: no content type, a
    JSON that is nested too deeply, a number of thousands of digits. Its errors no longer repeat the whole request."""
    server: Any = sys.modules.get("mlflow.pyfunc.scoring_server")
    if server is None or hasattr(answer := server.invocations, "__wrapped__"):
        return

    @wraps(answer)
    def invocations(data: bytes, content_type: str | None, *rest: Any) -> Any:
        try:
            return answer(data, content_type or "", *rest)
        except MlflowException as error:
            error.message = error.message[-MOST_LETTERS:]
            raise
        except (ValueError, RecursionError) as error:
            raise MlflowException.invalid_parameter_value(str(error)[:MOST_LETTERS]) from error

    server.invocations = invocations


class Digits(PythonModel):
    """Answers a list of requests with a list of results, one for each request."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the weights, once."""
        from vae.serving.inference import Inference  # imported here, because logging the model needs no torch

        self.model = Inference(Path(context.artifacts["model"]))
        refuse_in_server()

    def predict(self, model_input: list[Request]) -> list[Result]:  # type: ignore[override]
        """`generate`, `decode` and `reconstruct` give images (N, 784), or png. `encode` gives mu and logvar (N, D)."""
        try:
            for request in model_input:
                check(request)
            digits = sum(request.n or len(request.images or request.latents or []) for request in model_input)
            if digits > MAX_DIGITS:
                raise InputError(f"at most {MAX_DIGITS} digits in one request, got {digits} in all of its tasks")
            return [self._answer(request) for request in model_input]  # type: ignore[misc]
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error

    def _answer(self, request: Request) -> dict[str, Any]:
        """The fields of a `Result`, because MLflow has no JSON for objects of other classes."""
        match request:
            case Request(task="encode", images=list(images)):
                mu, logvar = self.model.encode(images)
                return {"mu": mu, "logvar": logvar}
            case Request(task="decode", latents=list(latents)):
                images = self.model.decode(latents)
            case Request(task="reconstruct", images=list(given)):
                images = self.model.reconstruct(given)
            case _:
                images = self.model.generate(request.n or 1, request.seed)
        return {"png": self.model.png(images)} if request.format == "png" else {"images": images}


set_model(Digits())
