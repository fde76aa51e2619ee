"""A run is reproduced from its record, found by a name, and recorded again by the doctor."""

import copy
import json

import pytest

from vae.tracking import reproduction

pytestmark = pytest.mark.pipeline

RESULT = ("params.yaml", "metrics/mlflow.json")
WHICH, DOCTOR, REPRODUCE = (f"tools/{name}.py" for name in ("which", "doctor", "reproduce"))


def test_run_from_a_dirty_experiment_is_reproduced_bit_for_bit(project):
    """Even with an uncommitted change of code and a new file in any encoding, which only the diff in the run has.
    Files that nobody named stay on this machine."""
    code, notes = project.folder / "src/vae/evaluation/plots.py", project.folder / "notes.txt"
    committed = code.read_text()
    code.write_text(committed.replace("GAP = 2", "GAP = 3"))
    assert code.read_text() != committed
    notes.write_bytes(b"caf\xe9\r\n")
    project.run("git", "add", "notes.txt")
    secret, module = project.folder / "my.env", project.folder / "src/vae/new.py"
    secret.write_text("TOKEN=abc\n")
    module.touch()
    project.dvc("exp", "run", "--name", "dirty", "--set-param", "evaluate.seed=14")
    run = project.recorded()
    assert project.assert_whole(run).data.tags["git.dirty"] == "true"
    assert json.loads(project.text(run, "left-out.json"))["others"] == {"my.env": "named like a secret"}
    for path in (notes, secret, module):
        path.unlink()
    project.run("git", "checkout", "--quiet", "--", ".")  # the files are those of the commit again
    assert not project.changes()

    runs = project.runs()
    done = project.script(REPRODUCE, "params.yaml", run)
    assert done.stdout.count("the same, bit for bit") == len(json.loads(project.text(run, "hashes.json")))
    assert "reproduced: every file is the same" in done.stdout
    assert "src/vae/new.py is not in the record, and a stage may need it" in done.stdout
    restored = project.folder / f".dvc/tmp/worktrees/{run}"
    assert (restored / "notes.txt").read_bytes() == b"caf\xe9\r\n"
    assert not (restored / "my.env").exists()
    assert project.runs().keys() == runs.keys()
    assert not project.changes()  # the user's tree is not touched


def test_reproduction_says_how_far_apart_a_file_is(project, tmp_path):
    """The check can fail: it reports a recorded hash and a recorded file that differ from the results."""
    name = "metrics/evaluation.json"
    found = project.json(name)
    recorded = tmp_path / name
    recorded.parent.mkdir()
    recorded.write_text(json.dumps(found | {"active_units": found["active_units"] + 5}))
    hashes = {name: "0", "metrics/none.json": "0"}
    found = reproduction.compare(project.folder, hashes, tmp_path, other_machine=True)
    assert found == {reproduction.DIFFERENT: 2}


def test_which_run_is_an_experiment_and_what_the_doctor_does_if_it_is_lost(project):
    """The doctor records a lost run again from DVC's cache, and ends a run that is stuck."""
    project.dvc("exp", "run", "--name", "other", "--set-param", "generate.seed=7")
    run = project.client.get_run(project.recorded())
    assert run.info.run_id in project.script(WHICH, *RESULT, "other").stdout
    assert "DVC experiment other" in project.script(WHICH, *RESULT, run.info.run_id).stdout
    assert project.error(WHICH, *RESULT, "nothing-of-the-kind").startswith("error: nothing-of-the-kind")

    assert "nothing to mend" in project.script(DOCTOR, *RESULT).stdout
    project.client.delete_run(run.info.run_id)
    stuck = project.client.create_run(run.info.experiment_id, run_name="stuck")
    tags = {"vae.place": "elsewhere:/of/another"}
    foreign = project.client.create_run(run.info.experiment_id, run_name="foreign", tags=tags)
    sick = project.script(DOCTOR, *RESULT, check=False)
    assert sick.returncode == 1
    assert "experiment other" in sick.stdout
    assert "stuck" in sick.stdout
    before = project.runs()
    project.script(DOCTOR, *RESULT, "--mend")
    assert project.status(stuck.info.run_id) == "KILLED"
    assert project.status(foreign.info.run_id) == "RUNNING"  # whoever trains it knows
    (again,) = project.runs().keys() - before.keys()
    again = project.assert_whole(again)
    assert again.data.tags["dvc.experiments"] == "other"
    assert again.data.tags["vae.key"] == run.data.tags["vae.key"]
    assert "nothing to mend" in project.script(DOCTOR, *RESULT).stdout
    assert again.info.run_id in project.script(WHICH, *RESULT, "other").stdout

    project.dvc("exp", "remove", "other")
    orphan = project.script(DOCTOR, *RESULT, check=False)
    assert orphan.returncode == 0  # nothing is lost
    assert f"make reproduce RUN={again.info.run_id}" in orphan.stdout


def test_a_linked_work_tree_uses_the_store_and_the_cache_of_the_main_one(project):
    """Its experiment has its run in the main work tree too, and is recorded again from there, whatever hooks do."""
    hook = project.folder / ".git/hooks/post-checkout"
    linked = copy.copy(project)
    linked.folder = project.home / "a linked: tree"
    project.run("git", "worktree", "add", "--quiet", "-b", "linked", str(linked.folder))
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    linked.run("python", "-m", "vae.tracking.worktree", PYTHONPATH="src")  # as the set-up does
    before = project.runs()
    linked.dvc("checkout")
    linked.dvc("exp", "run", "--temp", "--name", "there", "--set-param", "generate.seed=21")
    assert not (linked.folder / "mlflow.db").exists()
    assert not (linked.folder / ".checkpoints").exists()
    (run,) = project.runs().keys() - before.keys()
    project.assert_whole(run)
    assert (
        f"MLflow run {run} (there, FINISHED) is DVC experiment there" in project.script(WHICH, *RESULT, "there").stdout
    )
    project.client.delete_run(run)
    project.script(DOCTOR, *RESULT, "--mend")
    (again,) = project.runs().keys() - before.keys()
    assert project.client.get_run(again).data.tags["vae.key"] == project.client.get_run(run).data.tags["vae.key"]
    project.dvc("exp", "apply", "there")
    assert project.recorded() == run
