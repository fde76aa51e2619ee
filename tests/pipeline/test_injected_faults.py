"""A short soak: some faults of each kind, and none of them is lost. `make soak` runs the long one."""

import pytest

from tests import soak

pytestmark = pytest.mark.pipeline


def test_no_fault_of_a_short_soak_is_lost(project, monkeypatch):
    monkeypatch.setattr(soak, "KILLS", 2)
    few = soak.Soak(project, seed=1)
    few.round(lambda: few.kills("dvc queue start"))
    few.round(few.files)
    few.round(lambda: few.checkpoints(1))
    few.round(lambda: few.servers(("503", "drips")))
    assert few.losses == []
    report = soak.report([few])
    assert report["total"]["injected"] == report["total"]["survived"] >= 8
    assert report["total"]["lost"] == 0


def test_what_does_not_survive_is_counted_as_lost(project):
    few = soak.Soak(project, seed=0)

    def inject() -> None:
        few.count("a kind")
        soak.require(project.hashes() != few.hashes, "the bits")

    few.round(inject)
    few.round(lambda: few.count("another kind"))
    assert few.losses == ["inject: the bits"]
    assert soak.report([few])["total"] == {"injected": 2, "survived": 1, "mended": 0, "lost": 1}
    assert soak.report([few])["kinds"]["a kind"] == {"injected": 1, "survived": 0, "mended": 0, "lost": 1}
