"""How far a training is: lines without a terminal, and what an interrupt says."""

from vae.runtime import command, progress

import pytest


def test_without_a_terminal_each_epoch_is_a_line(capsys, monkeypatch):
    """The whole time is estimated once, from the first steps but the very first, and the cost of all."""
    clock = iter([8.0, 10.0, 14.0, 100.0, 103.0, 200.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Bar(2, lambda epoch: 1.0 if epoch < 0.5 else 0.5) as bar:
        after = bar.start(0)
        after(1, 10)
        after(2, 10)
        after(4, 10)  # 6 s for three steps: 10 s for the first five, and 15 s for the others at half the cost
        bar.end("neg-ELBO 90.00", 15.0)
        bar.start(1)(1, 10)
        bar.end("neg-ELBO 80.00", 7.5)
    assert capsys.readouterr().out.splitlines() == [
        "training takes about 25 s on this machine",
        "epoch 1 of 2: neg-ELBO 90.00, 15 s",
        "epoch 2 of 2: neg-ELBO 80.00, 7.5 s",
    ]


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr(command, "last_words", "interrupted")
    with progress.Bar(6, lambda _epoch: 1.0) as bar:
        bar.start(2)
        assert command.last_words == "stopped after epoch 2 of 6; run the same command to go on"
        bar.end("", 1.0)
        assert "after epoch 3 of 6" in command.last_words


@pytest.mark.parametrize(("seconds", "words"), [(4.24, "4.2 s"), (50.4, "50 s"), (700, "12 min")])
def test_durations(seconds, words):
    assert progress.duration(seconds) == words
