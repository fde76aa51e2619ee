"""Experiments that belong together are the children of one run. Searches and queues: tests/pipeline."""

from vae.runtime import repository

import os
from threading import Thread

import pytest

from vae.tracking import sweep
from vae.tracking.store import CHAMPION_METRIC, Store, Tag, store_lock


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A folder with a store. Its schema is made once, because that takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def store(database, monkeypatch):
    """A store without the runs of other tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database / 'mlflow.db'}")
    monkeypatch.setenv("DVC_ROOT", str(database))
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789")
    found = Store(database, "vae")
    for run in found.find() + found.search_runs([found.experiment.experiment_id], f"tags.`{Tag.GROUP}` LIKE '%'"):
        found.delete_run(run.info.run_id)
    return found


@pytest.fixture
def reached(store, monkeypatch):
    """Records a run that an experiment has reached, or lets an experiment reach it again."""

    def reach(name: str, run_id: str = "", figure: float = 100.0, **params: object) -> str:
        monkeypatch.setenv("DVC_EXP_NAME", name)
        if not run_id:
            run_id = store.create_run(store.experiment.experiment_id, run_name=name).info.run_id
            store.log_params(run_id, params)
            store.log_metrics(run_id, [(1, {CHAMPION_METRIC: figure})])
            store.set_terminated(run_id)
        with store_lock(store.root):
            return sweep.join(store, run_id)

    return reach


def parents(store) -> dict:
    """The parent runs by name."""
    found = store.search_runs([store.experiment.experiment_id], f"tags.`{Tag.GROUP}` LIKE '%'")
    return {run.info.run_name: run for run in found}


@pytest.mark.parametrize(
    ("name", "folder", "group"),
    [
        ("wide-3", ".", "wide"),
        ("ten-minutes-12", ".", "ten-minutes"),
        ("wide", ".", None),
        ("", ".", None),
        ("a,b-1", ".", None),  # a comma separates names in tags
        ("wispy-noun", f"{repository.COPIES}/tmp1", "queue-0123456"),
        ("wispy-noun", f"{repository.COPIES}/tmp1/inside", "queue-0123456"),
        ("wispy-noun", f"{repository.COPIES}/standalone/tmp1", None),  # `dvc exp run --temp`
        ("wide-3", f"{repository.COPIES}/tmp1", "wide"),
    ],
)
def test_the_name_or_the_queue_tells_the_group(tmp_path, monkeypatch, name, folder, group):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", name)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    assert sweep.group() == group


def test_seeds_of_a_model_are_one_line_with_mean_and_deviation(store, reached):
    runs = [
        reached(f"seeds-{seed}", figure=100 + seed, **{"train.seed": seed, "model.latent_dim": 4}) for seed in (1, 3)
    ]
    runs.append(reached("seeds-4", figure=110, **{"train.seed": 1, "model.latent_dim": 8}))
    (parent,) = parents(store).values()
    assert parent.info.status == "FINISHED"
    lines = parent.data.tags["mlflow.note.content"].splitlines()
    assert lines[0] == "3 runs are complete, 0 were pruned"
    assert lines[2] == f"| model.latent_dim | seeds | {CHAMPION_METRIC} | deviation |"
    assert lines[4:] == ["| 4 | 2 | 102.00 | 1.41 |", "| 8 | 1 | 110.00 |  |"]
    assert parent.data.metrics == {
        f"group/best_{CHAMPION_METRIC}": 102,
        f"group/{CHAMPION_METRIC}_deviation": pytest.approx(2**0.5),
    }
    assert {item.path for item in store.list_artifacts(parent.info.run_id)} >= {"parallel_coordinate.png"}
    assert {store.get_run(run_id).data.tags[sweep.CHILD] for run_id in runs} == {parent.info.run_id}
    assert {run.info.run_id for run in store.find()} == set(runs)  # the parent is no state


def test_a_run_from_the_cache_is_a_child_of_both_sweeps(store, reached):
    first = reached("one-1")
    assert reached("two-1", first) == reached("two-1", first) == first
    assert {name: run.data.tags["mlflow.note.content"][:18] for name, run in parents(store).items()} == {
        "one": "1 runs are complet",
        "two": "1 runs are complet",
    }
    tags = store.get_run(first).data.tags
    assert tags[Tag.GROUPS] == "one,two"
    assert tags[sweep.CHILD] == parents(store)["one"].info.run_id  # the UI shows it there


def test_a_group_whose_name_is_part_of_another_one_has_its_own_children(store, reached):
    reached("wide-1")
    reached("very-wide-1")
    assert all(run.data.tags["mlflow.note.content"].startswith("1 runs") for run in parents(store).values())


def test_workers_at_the_same_time_make_one_parent(store, reached):
    made = [reached(f"alone{number}") for number in range(4)]
    os.environ["DVC_EXP_NAME"] = "together-1"  # put back by the fixture

    def join(run_id: str) -> None:
        with store_lock(store.root):
            sweep.join(store, run_id)

    threads = [Thread(target=join, args=(run_id,)) for run_id in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (parent,) = parents(store).values()
    assert [store.get_run(run_id).data.tags[sweep.CHILD] for run_id in made] == [parent.info.run_id] * 4


def test_an_open_training_is_a_child_at_once_and_not_yet_in_the_table(store, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "live-1")
    run_id = store.create_run(store.experiment.experiment_id).info.run_id
    sweep.join(store, run_id)
    (parent,) = parents(store).values()
    assert store.get_run(run_id).data.tags[sweep.CHILD] == parent.info.run_id
    assert "mlflow.note.content" not in parent.data.tags
