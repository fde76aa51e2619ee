"""The strict, typed schema of params.yaml, the only file with settings."""

from pathlib import Path
from reprlib import Repr
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vae.errors import InputError

Count = Annotated[int, Field(ge=1, le=10**6)]
CountOrZero = Annotated[int, Field(ge=0, le=10**6)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]  # far beyond any rate that converges
NonNegative = Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=16384)]
Widths = Annotated[list[Width], Field(min_length=1, max_length=16)]
TRAINING = ("data", "model", "train")  # the sections that decide which model a training makes
NOT_IN_PIPELINE = {"annealing", "classifier", "quality"}  # the sections that no stage of dvc.yaml reads
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
_PART = r"[A-Za-z0-9][A-Za-z0-9._@+-]*"
PathName = Annotated[str, Field(pattern=rf"^/?{_PART}(/{_PART})*$", max_length=250)]
_SHORT = Repr()  # in messages, because anchors in a small file can stand for a huge tree
_SHORT.maxlevel, _SHORT.maxstring = 2, 100
TagName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]  # MLflow's and ours have a dot
TagText = Annotated[str, Field(min_length=1, max_length=500)]


class Section(BaseModel):
    """A block of params.yaml: no unknown key, no missing key, no default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    name: Literal["mnist", "fashion-mnist", "kmnist", "emnist-letters", "digits", "folder"]
    path: Annotated[str, Field(min_length=1)]
    resize: bool
    grey: bool
    split_seed: Seed
    validation: Count
    binarization: Literal["dynamic", "none"]


class Model(Section):
    architecture: Literal["mlp", "conv"]
    encoder: Widths
    decoder: Widths
    channels: Annotated[list[Width], Field(min_length=2, max_length=2)]
    blocks: Annotated[int, Field(ge=0, le=64)]
    latent_dim: Annotated[int, Field(ge=2, le=1024)]
    prior: Literal["standard-normal", "mixture", "flow"]
    mixture_components: Annotated[int, Field(ge=1, le=65536)]
    flow_couplings: Annotated[int, Field(ge=1, le=64)]
    flow_hidden: Widths


class Train(Section):
    seed: Seed
    initial_bias: Literal["default", "data-mean"]
    epochs: Count
    prior_epochs: CountOrZero
    batch_size: Count
    augmentation: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    importance_samples: Count
    importance_epochs: NonNegative
    refine_epochs: CountOrZero
    refine_importance_samples: Count
    refine_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    optimizer: Literal["adam", "muon"]
    learning_rate: Positive
    prior_learning_rate: Positive
    flow_learning_rate: Positive
    muon_learning_rate: Positive
    schedule: Literal["constant", "cosine", "stable-decay"]
    warmup_steps: CountOrZero
    kl_warmup_epochs: NonNegative
    gradient_clip: NonNegative
    device: Literal["auto", "cpu", "cuda"]
    instructions: Literal["native", "avx2"]
    precision: Literal["auto", "bf16", "fp32"]
    threads: Annotated[int, Field(ge=1, le=1024)]


class Evaluate(Section):
    seed: Seed
    importance_samples: Count
    grey_samples: Count
    precision: Literal["auto", "bf16", "fp32"]


class Generate(Section):
    seed: Seed
    rows: Annotated[int, Field(ge=1, le=100)]
    columns: Annotated[int, Field(ge=1, le=100)]
    interpolations: Annotated[int, Field(ge=1, le=100)]


class Annealing(Section):
    seed: Seed
    images: Count
    chains: Count
    temperatures: Annotated[int, Field(ge=2, le=10**6)]
    leapfrog_steps: Count
    step_size: Positive
    importance_samples: Annotated[list[Count], Field(min_length=1, max_length=16)]


class Track(Section):
    experiment: PathName
    registered_model: Name
    tags: Annotated[dict[TagName, TagText], Field(max_length=20)]
    system_metrics: bool


class Classifier(Section):
    seed: Seed
    validation: Count
    channels: Annotated[list[Width], Field(min_length=2, max_length=2)]
    features: Width
    epochs: Count
    batch_size: Count
    learning_rate: Positive
    warmup_steps: Count
    shift: Annotated[int, Field(ge=0, le=14)]
    threads: Annotated[int, Field(ge=1, le=1024)]


class Quality(Section):
    seed: Seed
    samples: Annotated[int, Field(ge=2, le=10**6)]
    draws: Annotated[int, Field(ge=2, le=1000)]
    neighbours: Annotated[int, Field(ge=1, le=100)]
    searched: Count


class Params(Section):
    data: Data
    model: Model
    train: Train
    evaluate: Evaluate
    generate: Generate
    track: Track
    annealing: Annealing
    classifier: Classifier
    quality: Quality


def _explain(error: ValidationError, path: Path) -> str:
    """The first error, in one line."""
    detail = error.errors(include_url=False)[0]
    got = _SHORT.repr(detail["input"])
    if not detail["loc"]:
        return f"{path}: must be a mapping with the blocks {', '.join(Params.model_fields)}, got {got}"
    key = ".".join(str(part) for part in detail["loc"])
    section = detail["loc"][0] if len(detail["loc"]) > 1 else ""
    known = Params.model_fields[section].annotation if section in Params.model_fields else Params
    keys = ", ".join(known.model_fields)  # type: ignore[union-attr]
    where = section or "the file"
    match detail["type"]:
        case "extra_forbidden":
            return f"{path}: {key}: unknown key; {where} has: {keys}"
        case "missing":
            return f"{path}: {key}: missing; {where} must have: {keys}"
        case _:
            problem = detail["msg"][0].lower() + detail["msg"][1:]
            return f"{path}: {key}: {problem}, got {got}"


def parse(text: str, path: Path = Path("params.yaml")) -> Params:
    """Parses the text of params.yaml.
    Every scalar is read as text, and the schema alone gives it a type. YAML 1.1 and 1.2 disagree on the meaning of
    `1e-05`, `012`, `on` and `12:30`, and DVC writes one dialect while PyYAML reads the other.
    Raises InputError if the text is not YAML, a key is unknown or missing, or a value has the wrong type or range."""
    try:
        tree = yaml.load(text, Loader=yaml.BaseLoader)
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        if "<<<<<<< " in text:
            raise InputError(f"{path}: conflict marks of a merge; resolve them by hand, as in code") from error
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise InputError(_explain(error, path)) from error


def load(path: Path) -> Params:
    """Reads params.yaml. Raises InputError as `parse` does, or if the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; run from the root of the repository") from error
    return parse(text, path)


def leaves(params: Params) -> dict[str, str | int | float | list]:
    """Every leaf of params.yaml under its full name, `section.key`."""
    return {f"{name}.{key}": value for name, section in params for key, value in section}
