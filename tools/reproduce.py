"""`make reproduce`: restores the inputs of an MLflow run, runs it from scratch, and compares every file."""

from vae.runtime import command, repository

import json
import shlex
import sys
import tempfile
from pathlib import Path

from vae.errors import InputError
from vae.params import load
from vae.tracking import reproduction
from vae.tracking.store import Store, Tag
from vae.tracking.worktree import place, worktree


def main(params: Path, run: str) -> None:
    if not (run := run.strip()):
        raise InputError("no run is named; `make reproduce RUN=<run id>`, which `make ui` and `make which` show")
    root = Path().resolve()
    store = Store(repository.main_repository(), load(params).track.experiment)
    commit = store.run_tags(run, Tag.COMMIT, Tag.KEY)[Tag.COMMIT]
    with tempfile.TemporaryDirectory() as scratch, worktree(root, run, commit, keep=True) as folder:
        recorded = Path(store.download_artifacts(run, "", scratch))
        hashes = json.loads((recorded / "hashes.json").read_text())
        print(f"run {run}: commit {commit[:7]}, restored in {folder}; running it from scratch", flush=True)
        reproduction.restore(folder, recorded)
        reproduction.tell_left_out(recorded)
        reproduction.rerun(folder)
        different = reproduction.compare(folder, hashes, recorded)
    print("reproduced: every file is the same" if not different else f"{different} of {len(hashes)} files differ")
    print(f"the work tree stays; `rm -rf {shlex.quote(str(place(root, run)))}` removes it")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    command.run(main)
