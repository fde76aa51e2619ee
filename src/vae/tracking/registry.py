"""The registered models: one for each data set and kind of pixels, and which version is the champion."""

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from vae.params import Params
from vae.tracking import servable
from vae.tracking.store import CHAMPION_METRIC

CHAMPION, SPLIT = "champion", "validation_split"


def registered_name(config: Params) -> str:
    """The registered model: one for each data set and binarization, because nats of different pixels do not compare."""
    name = f"{config.track.registered_model}-{config.data.name}"
    return f"{name}-grey" if config.data.binarization == "none" else name


def register(client: MlflowClient, config: Params, run_id: str, uri: str, value: float, split: str) -> None:
    """Registers the model of a run. It becomes the champion if it beats the present one on the same validation images.
    `split` names these images: their number, and the data set by its hash."""
    name = registered_name(config)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    present = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    scored = {CHAMPION_METRIC: repr(value), SPLIT: split}
    new = present[0] if present else create_version(client, name, uri, run_id, scored)
    tags, better = client.get_model_version(name, champion).tags if champion else {}, champion is None
    if champion is None:
        verdict = "it is the first champion"
    elif CHAMPION_METRIC not in tags:
        verdict = f"not compared with the champion (version {champion}): it was chosen by hand"
    elif tags.get(SPLIT) != split:
        verdict = f"not compared with the champion (version {champion}): it was scored on other validation images"
    else:
        best = float(tags[CHAMPION_METRIC])
        better = value < best
        compared = "the new champion, better than" if better else "not better than the champion,"
        verdict = f"it is {compared} version {champion} with {best:.2f}"
    if better:
        client.set_registered_model_alias(name, CHAMPION, new.version)
    print(f"registered {name} version {new.version}: {CHAMPION_METRIC} {value:.2f}; {verdict}")


def create_version(client: MlflowClient, name: str, uri: str, run_id: str | None, tags: dict[str, str]) -> ModelVersion:
    """Registers a logged model under a name."""
    model_id = uri.rpartition("/")[2]  # an MLflow server requires model_id; a database does not
    return client.create_model_version(name, uri, run_id, tags, model_id=model_id, description=servable.DESCRIPTION)


def register_again(client: MlflowClient, versions: list[ModelVersion], uri: str) -> None:
    """Registers the model of a run that has these versions once more. The new version takes their tags and aliases."""
    last, numbers = max(versions, key=lambda item: int(item.version)), {str(item.version) for item in versions}
    new = create_version(client, last.name, uri, last.run_id, last.tags)
    present = client.get_registered_model(last.name).aliases
    aliases = [alias for alias, number in present.items() if str(number) in numbers]
    for alias in aliases:
        client.set_registered_model_alias(last.name, alias, new.version)
    moved = "".join(f"; it is the {alias} now" for alias in aliases)
    print(f"registered {last.name} version {new.version}: the model of version {last.version}, the present code{moved}")
