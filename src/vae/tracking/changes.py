"""The uncommitted changes of the working tree that a run records, and the files that it leaves out.

A run records the changes of files that git tracks, the new files that the user gave to git (`git add`), and new source
files that a stage depends on. It never records secrets, environments or large files."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vae.tracking.worktree import git, names

MOST_BYTES = 1 << 20  # of a file
SOURCES = {".py", ".sh", ".yaml", ".yml", ".toml", ".json"}
ENVIRONMENTS = ("venv", ".venv", "env", "site-packages", "node_modules")
SECRETS = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", ".pypirc", ".npmrc", "config.local"),
    *("*secret*", "*credential*", "*password*", ".ssh", ".aws", ".gnupg", ".kube"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.keystore", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
)
# With these options `git apply` accepts the difference, whatever the user has configured.
PLAIN = (
    *("--binary", "--unified=3", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--ignore-submodules=dirty", f"-O{os.devnull}"),
)
NEW = "new; `git add` records it"


@dataclass(frozen=True)
class Changes:
    """What differs from the commit: the part that is recorded, and the files that are left out, each with the reason.
    A stage needs or may need those in `needed`, so that a reproduction can miss them."""

    diff: bytes
    needed: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def uncommitted_changes(outputs: Iterable[Path], dependencies: Iterable[str]) -> Changes:
    """The difference between the working tree and its commit, without the folders of outputs.
    The user's index stays as it is. The difference is bytes, because files may have any encoding and any line ends."""
    folders = {path if path.is_dir() else path.parent for path in outputs} - {Path()}  # never the whole tree
    here = ["--", ".", ":(exclude,glob)**/dvc.lock", *(f":(exclude,literal){path}" for path in sorted(folders))]
    deps = {PurePosixPath(path) for path in dependencies}
    unknown = names("ls-files", "-z", "--others", "--exclude-standard", *here)
    with tempfile.TemporaryDirectory() as scratch:
        index, listed = {"GIT_INDEX_FILE": f"{scratch}/index"}, Path(scratch, "listed")
        git("read-tree", "HEAD", environment=index)
        given = names("ls-files", "-z", *here) - names("ls-files", "-z", *here, environment=index)
        sources = {name for name in unknown if is_below(name, deps) and Path(name).suffix in SOURCES}
        new = {name for name in given | sources if os.path.lexists(name)}
        if allowed := sorted(name for name in new if not refusal(name)):
            listed.write_bytes(b"\0".join(map(os.fsencode, allowed)))
            add = ("add", "--intent-to-add", "--force", f"--pathspec-from-file={listed}", "--pathspec-file-nul")
            git("--literal-pathspecs", *add, environment=index)
        changed = names("diff", "--name-only", "--relative", "-z", "HEAD", *here, environment=index)
        refused = {name: reason for name in changed | new if (reason := refusal(name))}
        excluded = [f":(exclude,literal){name}" for name in sorted(refused)]
        diff = git("diff", *PLAIN, "HEAD", *here, *excluded, environment=index)
    left_out = {name: refusal(name) or NEW for name in unknown - new} | refused
    needed = {name for name in left_out if is_below(name, deps) or is_code(name, deps)}
    whole = names("ls-files", "-z", "--others", "--exclude-standard", "--directory", *here)
    others = shortened(left_out.keys() - needed, {name for name in whole if name.endswith("/")}, unknown)
    return Changes(
        diff,
        {name: left_out[name] for name in sorted(needed)},
        {name: left_out.get(name) or refusal(name) or NEW for name in others},
    )


def refusal(name: str) -> str:
    """The reason why a file is never recorded. Empty if it can be."""
    parts = PurePosixPath(name.lower()).parts
    if any(part in ENVIRONMENTS for part in parts):
        return "part of an environment"
    if any(fnmatch(part, pattern) for part in parts for pattern in SECRETS):
        return "named like a secret"
    if parts[-2:] == (".dvc", "config"):
        return "may have the password of a remote"
    large = os.path.lexists(name) and os.lstat(name).st_size > MOST_BYTES
    return f"over {MOST_BYTES >> 20} MB" * large


def is_below(name: str, dependencies: set[PurePosixPath]) -> bool:
    """Whether a stage depends on a file, or on a folder in which it is."""
    path = PurePosixPath(name)
    return not dependencies.isdisjoint({path, *path.parents})


def is_code(name: str, dependencies: set[PurePosixPath]) -> bool:
    """Whether the code of a stage may import a file: it is Python in one of the folders at the top that have code."""
    path = PurePosixPath(name)
    folders = {item.parts[0] for item in dependencies if item.suffix == ".py"}
    return path.suffix == ".py" and path.parts[0] in folders and not any(part in ENVIRONMENTS for part in path.parts)


def shortened(left_out: set[str], folders: set[str], unknown: set[str]) -> list[str]:
    """The names of files, with a folder in place of its files if all of them are left out."""
    for folder in folders:
        inside = {name for name in unknown if name.startswith(folder)}
        if inside and inside <= left_out:
            left_out = left_out - inside | {folder}
    return sorted(left_out)
