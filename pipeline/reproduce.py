"""Back from a run: restores what an MLflow run was made from, runs it from scratch, and compares file by file."""

import json
import sys
import tempfile
from pathlib import Path

from vae import command, experiments, reproduction, tracking
from vae.errors import InputError
from vae.params import load


def main(params: Path, run: str) -> None:
    """Reproduces a run in a work tree of its own, and exits 0 where every file is bitwise the same."""
    if not (run := run.strip()):
        raise InputError("no run is named; `make reproduce RUN=<run id>`, which `make ui` and `make which` show")
    root = Path().resolve()
    store = tracking.Store(root, load(params).track.experiment)
    commit = store.run_tags(run, "git.commit", "vae.key")["git.commit"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        experiments.worktree(root, run, commit, keep=True) as folder,
    ):
        recorded = store.download(run, "", Path(scratch))
        hashes = json.loads((recorded / "hashes.json").read_text())
        print(f"run {run}: commit {commit[:7]}, restored in {folder}; running it from scratch", flush=True)
        reproduction.restore(folder, recorded)
        reproduction.rerun(folder)
        different = reproduction.compare(folder, hashes, tracking.file_sha256, recorded)
    print("reproduced: every file is the same" if not different else f"{different} of {len(hashes)} files differ")
    print(f"the work tree stays; `git worktree remove --force {folder}` removes it")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    command.run(main)
