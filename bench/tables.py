"""The tables of docs/speed.md, from metrics/bench.json: one row for each figure and kind of CPU that was measured."""

from collections.abc import Iterable
from typing import Any

Figures = dict[str, Any]
PARTS = {  # a figure that each part of the benchmark has
    "whole": "whole_ratio",
    "speed": "epoch_seconds_ours",
    "quality": "origin_process_seconds",
    "cost": "fixed_cost_parts_seconds",
    "growth": "growth",
}


def lines(*rows: Iterable[str]) -> list[str]:
    """A table of Markdown, whose first row is its header."""
    first, *others = (tuple(row) for row in rows)
    return [f"| {' | '.join(row)} |" for row in (first, ("---",) * len(first), *others)]


def spread(seconds: list[float]) -> str:
    """One time, or the fastest and the slowest."""
    low, high = min(seconds), max(seconds)
    return f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}"


def compared(kind: str, figures: Figures) -> list[tuple[str, ...]]:
    """The rows that compare with the tutorial and with the limit of the machine."""
    rows: list[tuple[str, ...]] = []
    if PARTS["whole"] in figures:
        rows.append(
            (
                "whole pipeline, and the whole script of the tutorial, s",
                kind,
                f"{spread(figures['whole_seconds_origin'])} ({figures['whole_neg_elbo_grey_nats_origin']:.1f} nats)",
                f"{spread(figures['whole_seconds_ours'])} ({figures['whole_neg_elbo_grey_nats_ours']:.1f} nats)",
                "",
                f"{1 / figures['whole_ratio']:.1f}",
                "",
            )
        )
    if PARTS["speed"] in figures:
        rows.append(
            (
                "epoch of the tutorial's network, s",
                kind,
                *(f"{figures[f'epoch_seconds_{name}']:.2f}" for name in ("origin", "ours", "floor")),
                f"{figures['epoch_speedup']:.1f}",
                f"{figures['floor_fraction']:.2f}",
            )
        )
        samples, share = figures["evaluation_samples_per_second"], figures["evaluation_floor_fraction"]
        rows.append(
            ("its evaluation, importance samples per second", kind, "", f"{samples:,.0f}", "", "", f"{share:.2f}")
        )
    if PARTS["quality"] in figures:
        rows += [
            (
                f"from start to a saved model of {nats} nats of grey, s",
                kind,
                f"{figures['origin_process_seconds']:.1f} ({figures['origin_neg_elbo_grey_nats']:.1f} nats)",
                f"{figures[f'time_to_{goal}_seconds']:.1f} ({figures[f'{goal}_reached_neg_elbo_grey_nats']:.1f} nats)",
                "",
                f"{figures[f'time_to_{goal}_speedup']:.1f}",
                "",
            )
            for goal, nats in (("origin_quality", "101.2"), ("origin_end", "the tutorial's"))
        ]
    return rows


def cost(kind: str, figures: Figures) -> list[str]:
    """The parts of a whole `dvc repro`, in a sentence."""
    if PARTS["cost"] not in figures:
        return []
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in figures["fixed_cost_parts_seconds"].items())
    peaks = ", ".join(f"{name} {mib:.0f}" for name, mib in figures["peak_memory_mib"].items())
    return [
        f"**{kind}.** A whole `dvc repro` from nothing took {figures['repro_seconds']:.1f} s, of which training proper "
        f"{figures['training_seconds']:.1f} s, evaluation proper {figures['evaluation_seconds']:.1f} s and all "
        f"else {figures['fixed_cost_seconds']:.1f} s ({parts}); measured apart, a process that imports torch takes "
        f"{figures['import_torch_seconds']:.1f} s, one that imports mlflow {figures['import_mlflow_seconds']:.1f} s. "
        f"Peak memory in MiB: {peaks}.",
        "",
    ]


def table(kinds: dict[str, Figures]) -> str:
    """Speed next to the tutorial and the machine's limit, the parts of the fixed cost, and how cost grows."""
    rows = [row for kind, figures in kinds.items() for row in compared(kind, figures)]
    header = ("", "CPU", "tutorial", "here", "matrix products alone", "times faster", "share of the limit")
    grown = [
        (line["what"], kind, f"{line['seconds']:.1f}", f"{line['peak_mib']:.0f}" if line["peak_mib"] else "")
        for kind, figures in kinds.items()
        for line in figures.get("growth", [])
    ]
    sentences = [line for kind, figures in kinds.items() for line in cost(kind, figures)]
    shown = [*lines(header, *sorted(rows, key=lambda row: row[0], reverse=True)), "", *sentences]
    return "\n".join(shown + lines(("how cost grows", "CPU", "seconds", "peak MiB"), *grown))
