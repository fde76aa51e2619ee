"""The tables of docs/speed.md, from metrics/bench.json."""

from typing import Any


def table(figures: dict[str, Any]) -> str:
    """Speed next to the tutorial and the machine's limit, the parts of the fixed cost, and how cost grows."""
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in figures["fixed_cost_parts_seconds"].items())
    peaks = ", ".join(f"{name} {mib:.0f}" for name, mib in figures["peak_memory_mib"].items())
    rows = [
        ("", "tutorial", "here", "matrix products alone", "times faster", "share of the limit"),
        ("---",) * 6,
        (
            "epoch of the tutorial's network, s",
            f"{figures['epoch_seconds_origin']:.2f}",
            f"{figures['epoch_seconds_ours']:.2f}",
            f"{figures['epoch_seconds_floor']:.2f}",
            f"{figures['epoch_speedup']:.1f}",
            f"{figures['floor_fraction']:.2f}",
        ),
        *(
            (
                f"from start to a saved model of {nats} nats of grey, s",
                f"{figures['origin_process_seconds']:.1f} ({figures['origin_neg_elbo_grey_nats']:.1f} nats)",
                f"{figures[f'time_to_{goal}_seconds']:.1f} ({figures[f'{goal}_reached_neg_elbo_grey_nats']:.1f} nats)",
                "",
                f"{figures[f'time_to_{goal}_speedup']:.1f}",
                "",
            )
            for goal, nats in (("origin_quality", "101.2"), ("origin_end", "the tutorial's"))
        ),
        (
            "its evaluation, importance samples per second",
            "",
            f"{figures['evaluation_samples_per_second']:,.0f}",
            "",
            "",
            f"{figures['evaluation_floor_fraction']:.2f}",
        ),
    ]
    grown = [("how cost grows", "seconds", "peak MiB"), ("---",) * 3]
    grown += [
        (line["what"], f"{line['seconds']:.1f}", f"{line['peak_mib']:.0f}" if line["peak_mib"] else "")
        for line in figures["growth"]
    ]
    return "\n".join(
        [
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"A whole `dvc repro` from nothing took {figures['repro_seconds']:.1f} s, of which training proper "
            f"{figures['training_seconds']:.1f} s, evaluation proper {figures['evaluation_seconds']:.1f} s and all "
            f"else {figures['fixed_cost_seconds']:.1f} s ({parts}); measured apart, "
            f"a process that imports torch takes {figures['import_torch_seconds']:.1f} s, one that imports mlflow "
            f"{figures['import_mlflow_seconds']:.1f} s. "
            f"Peak memory in MiB: {peaks}.",
            "",
            *(f"| {' | '.join(row)} |" for row in grown),
        ]
    )
