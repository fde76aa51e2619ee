"""The model as a product: what `mlflow.pyfunc.load_model` and `mlflow models serve` answer with.

MLflow loads this file as code and the weights as safetensors; no pickle is executed.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vae import data, model

MOST = 1000  # digits in one request

Intensity = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Image = Annotated[list[Intensity], Field(min_length=data.PIXELS, max_length=data.PIXELS)]
Latent = list[Annotated[float, Field(allow_inf_nan=False)]]
Task = Literal["generate", "reconstruct", "encode", "decode"]


class Request(BaseModel):
    """One task. Images are 784 grey values in [0, 1], row by row; latents have the model's dimension."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    n: Annotated[int, Field(ge=1, le=MOST)] | None = None  # generate
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None  # generate
    images: Annotated[list[Image], Field(min_length=1, max_length=MOST)] | None = None  # reconstruct, encode
    latents: Annotated[list[Latent], Field(min_length=1, max_length=MOST)] | None = None  # decode

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Request":
        needs = {"generate": {"n", "seed"}, "reconstruct": {"images"}, "encode": {"images"}, "decode": {"latents"}}
        given = {name for name in ("n", "seed", "images", "latents") if getattr(self, name) is not None}
        if given != needs[self.task]:
            raise ValueError(f"task {self.task} takes {sorted(needs[self.task])}, got {sorted(given)}")
        return self


class Digits(PythonModel):
    """Answers a list of requests with a list of results, one each."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the weights, once."""
        self.vae = model.load(Path(context.artifacts["model"]))

    @torch.no_grad()
    def predict(self, model_input: list[Request]) -> list[dict[str, list[list[float]]]]:
        """`generate` and `decode` and `reconstruct` give images (N, 784), `encode` gives mu and logvar (N, D)."""
        return [self._answer(request) for request in model_input]

    def _answer(self, request: Request) -> dict[str, list[list[float]]]:
        match request.task:
            case "generate":
                generator = torch.Generator().manual_seed(request.seed or 0)
                return self._decode(self.vae.prior.sample(request.n or 1, generator))
            case "decode":
                return self._decode(self._latents(request.latents or []))
            case "reconstruct":
                return self._decode(self.vae.encode(torch.tensor(request.images))[0])
            case "encode":
                mu, logvar = self.vae.encode(torch.tensor(request.images))
                return {"mu": mu.tolist(), "logvar": logvar.tolist()}

    def _decode(self, z: torch.Tensor) -> dict[str, list[list[float]]]:
        return {"images": torch.sigmoid(self.vae.decode(z)).tolist()}

    def _latents(self, latents: list[list[float]]) -> torch.Tensor:
        dimension = self.vae.config.latent_dim
        if wrong := [len(latent) for latent in latents if len(latent) != dimension]:
            raise MlflowException.invalid_parameter_value(f"latents have {dimension} values each, got {wrong[0]}")
        return torch.tensor(latents)


set_model(Digits())
