"""Work trees beside the user's own. With real experiments: test_pipeline."""

import pytest
from filelock import FileLock

from vae import experiments
from vae.errors import InputError


def test_two_processes_never_share_a_work_tree(tmp_path):
    """The second would delete what the first is at work in."""
    inside = tmp_path / ".dvc/tmp/worktrees/run/file"
    inside.parent.mkdir(parents=True)
    inside.touch()
    with FileLock(inside.parent.with_suffix(".lock")), pytest.raises(InputError, match="another process is at work"):
        next(experiments.worktree(tmp_path, "run", "HEAD", keep=True).gen)
    assert inside.exists()
