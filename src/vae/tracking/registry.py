"""The registered models: one for each data set and kind of pixels, and which version is the champion."""

import json
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from vae.tracking import servable
from vae.tracking.address import made_by_another
from vae.tracking.store import CHAMPION_METRIC, Store, Tag

CHAMPION, SPLIT, VERDICT = "champion", "validation_split", "verdict"
SAME_TIME = 600_000  # milliseconds in which a machine compares a version with the champion, after it registered it


def registered_name(params: Mapping[str, Any]) -> str:
    """The registered model: one for each data set and binarization, because nats of different pixels do not compare.
    `params` are parameters by their full names."""
    name = f"{params['track.registered_model']}-{params['data.name']}"
    return f"{name}-grey" if params["data.binarization"] == "none" else name


def split_name(images: int, data_sha256: str) -> str:
    """A name for validation images: their number, and the data set by its hash."""
    return f"{images} images of {data_sha256[:16]}"


def versions_of(store: Store, name: str, run_id: str, model_sha256: str) -> list[ModelVersion]:
    """The versions of a registered model with these weights, of this run or of another state of the same model."""
    runs = {run_id, *(run.info.run_id for run in store.find({Tag.MODEL: model_sha256}))}
    return [version for version in store.search_model_versions(f"name = '{name}'") if version.run_id in runs]


def register(
    store: Store, name: str, run_id: str, uri: str, scored: dict[str, str], model_sha256: str, note: str
) -> None:
    """Registers the model of a run, unless a version has its weights already. It becomes the champion if it beats the
    present one on the same validation images. `scored` has its value, and the `split_name` of these images. The note
    of the run becomes a part of the description. A champion that cannot be loaded is none."""
    if not store.search_registered_models(f"name = '{name}'"):
        with made_by_another():
            store.create_registered_model(name)
    versions = versions_of(store, name, run_id, model_sha256)
    same = [item for item in versions if item.source == uri or _loads(store, item)]
    new = same[0] if same else create_version(store, name, uri, run_id, scored, note)
    if lost := lost_champion(store, name):
        print(f"{name} version {lost.version}, the champion, cannot be loaded; {replace_champion(store, lost)}")
    champion, value = store.get_registered_model(name).aliases.get(CHAMPION), float(scored[CHAMPION_METRIC])
    tags, better = store.get_model_version(name, champion).tags if champion else {}, champion is None
    if champion is None:
        verdict = "it is the first champion"
    elif str(champion) == str(new.version):
        verdict = "it is the champion"
    elif CHAMPION_METRIC not in tags:
        verdict = f"not compared with the champion (version {champion}): it was chosen by hand"
    elif tags.get(SPLIT) != scored[SPLIT]:
        verdict = f"not compared with the champion (version {champion}): it was scored on other validation images"
    else:
        best = float(tags[CHAMPION_METRIC])
        better = value < best
        compared = "the new champion, better than" if better else "not better than the champion,"
        verdict = f"it is {compared} version {champion} with {best:.2f}"
    if better:
        other = crown(store, new, scored[SPLIT])
        if other.version != new.version:
            verdict = f"version {other.version} with {other.tags[CHAMPION_METRIC]}, of the same time, is the champion"
        elif champion is not None:
            lost_to = f"it was the champion until version {new.version} with {value:.2f}"
            store.set_model_version_tag(name, champion, VERDICT, lost_to)
    store.set_model_version_tag(name, new.version, VERDICT, verdict)
    done = "has these weights already:" if same else "is registered:"
    print(f"{name} version {new.version} {done} {CHAMPION_METRIC} {value:.2f}; {verdict}")


def crown(store: Store, new: ModelVersion, split: str) -> ModelVersion:
    """Makes a new version the champion. Another machine may do the same with another one at the same time, so each
    looks again after it has moved the alias, and the last one to move it sees all. Returns the champion."""
    best, since = new, new.creation_timestamp - SAME_TIME
    while True:
        store.set_registered_model_alias(new.name, CHAMPION, best.version)
        found = best_version(store, new.name, split, since) or best
        if str(found.version) == str(best.version):
            return best
        best = found


def lost_champion(store: Store, name: str) -> ModelVersion | None:
    """The champion of a registered model if it cannot be loaded."""
    number = store.get_registered_model(name).aliases.get(CHAMPION)
    champion = store.get_model_version(name, number) if number else None
    return champion if champion and not _loads(store, champion) else None


def replace_champion(store: Store, lost: ModelVersion) -> str:
    """Makes the best version that can be loaded, on the same validation split, the champion. Returns what happened."""
    if best := best_version(store, lost.name, lost.tags.get(SPLIT)):
        store.set_registered_model_alias(lost.name, CHAMPION, best.version)
        return f"version {best.version} is the champion now"
    store.delete_registered_model_alias(lost.name, CHAMPION)
    return "there is no other, so there is no champion now"


def best_version(store: Store, name: str, split: str | None, since: int = 0) -> ModelVersion | None:
    """The best version that can be loaded, on a validation split if it is known, and registered `since` this time."""
    versions = [item for item in store.search_model_versions(f"name = '{name}'") if CHAMPION_METRIC in item.tags]
    rivals = [item for item in versions if split in (None, item.tags.get(SPLIT)) and item.creation_timestamp >= since]
    ranked = sorted(rivals, key=lambda item: (float(item.tags[CHAMPION_METRIC]), int(item.version)))
    return next((item for item in ranked if _loads(store, item)), None)


def _loads(store: Store, version: ModelVersion) -> bool:
    """Whether the files of a version are there. A version that was not made from a logged model is not judged."""
    source = version.source or ""
    return not source.startswith("models:/m-") or store.loads(source)


def create_version(
    client: MlflowClient, name: str, uri: str, run_id: str | None, tags: dict[str, str], note: str
) -> ModelVersion:
    """Registers a logged model under a name."""
    model_id = uri.rpartition("/")[2]  # an MLflow server requires model_id; a database does not
    about = f"{servable.DESCRIPTION}\n{servable.CALL.format(uri=uri)}\n{note}"
    new = client.create_model_version(name, uri, run_id, tags, model_id=model_id, description=about)
    link = json.dumps([{"name": name, "version": new.version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})  # for the Models page
    return new


def register_again(client: MlflowClient, versions: list[ModelVersion], uri: str) -> None:
    """Registers the model of a run that has these versions once more. The new version takes their tags and aliases."""
    last, numbers = max(versions, key=lambda item: int(item.version)), {str(item.version) for item in versions}
    note = (last.description or "").rpartition(servable.CALL[-4:])[2].strip()
    new = create_version(client, last.name, uri, last.run_id, last.tags, note)
    present = client.get_registered_model(last.name).aliases
    aliases = [alias for alias, number in present.items() if str(number) in numbers]
    for alias in aliases:
        client.set_registered_model_alias(last.name, alias, new.version)
    moved = "".join(f"; it is the {alias} now" for alias in aliases)
    print(f"registered {last.name} version {new.version}: the model of version {last.version}, the present code{moved}")
