"""`make reproduce`: restores the inputs of an MLflow run, runs it from scratch, and compares every file."""

from vae.runtime import command, machine

import json
import shlex
import sys
import tempfile
from pathlib import Path

import yaml

from vae.tracking import reproduction
from vae.tracking.store import Tag, open_store
from vae.tracking.worktree import place, worktree


def main(params: Path, run: str) -> None:
    root, run = Path().resolve(), run.strip()
    store = open_store(params)
    tags = store.run_tags(run, Tag.COMMIT, Tag.KEY)
    commit = tags[Tag.COMMIT]
    with tempfile.TemporaryDirectory() as scratch, worktree(root, run, commit, keep=True) as folder:
        recorded = Path(store.download_artifacts(run, "", scratch))
        hashes = json.loads((recorded / "hashes.json").read_text())
        print(f"run {run}: commit {commit[:7]}, restored in {folder}; running it from scratch", flush=True)
        reproduction.restore(folder, recorded)
        reproduction.tell_left_out(recorded)
        reproduction.rerun(folder)
        others = machine_differences(recorded / "params.yaml", tags)
        found = reproduction.compare(folder, hashes, recorded, other_machine=bool(others))
    different, close = found[reproduction.DIFFERENT], found[reproduction.CLOSE]
    if different:
        print(f"{different} of {len(hashes)} files differ")
    elif close:
        print(
            f"reproduced: every figure is the same within {reproduction.TOLERANCE:.0%}; {close} of {len(hashes)} files "
            "have other bits. A run with -S train.instructions=avx2 has the same bits on every x86-64 CPU with AVX2"
        )
    else:
        print("reproduced: every file is the same")
    print(f"the work tree stays; `rm -rf {shlex.quote(str(place(root, run)))}` removes it")
    sys.exit(1 if different else 0)


def machine_differences(params: Path, tags: dict[str, str]) -> list[str]:
    """Prints the recorded and the present machine side by side where they differ, and returns these lines."""
    if not any(name.startswith("machine.") for name in tags):
        print("  the record names no machine: the model came from a cache, or from an older version")
        return []
    command.limit_instructions(["", str(params)])
    train = yaml.load(params.read_text(), Loader=yaml.BaseLoader)["train"]  # other keys may be of another version
    lines = machine.differences(tags, machine.describe(int(train["threads"]), tags.get("model.device", "cpu")))
    for line in lines:
        print(f"  {line}")
    return [line for line in lines if not line.startswith("machine.os")]


if __name__ == "__main__":
    command.run(main)
