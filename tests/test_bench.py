"""The benchmark's contenders have the same network, and docs/speed.md shows the measured figures."""

import json
import time
from itertools import pairwise

import pytest
import torch
import yaml

from bench import __main__ as bench
from bench import contender, growth, origin, processes, tables
from vae import idx
from vae.evaluation import metrics, readme
from vae.model import VAE
from vae.params import load

PREFIXES = {
    "whole": ("whole",),
    "speed": ("epoch", "floor", "evaluation_samples", "evaluation_floor"),
    "quality": ("origin", "time_to"),
    "cost": ("repro", "training", "evaluation_seconds", "fixed", "import", "peak"),
    "growth": ("growth",),
}


@pytest.fixture
def config(tmp_path):
    return load(processes.variant(tmp_path / "params.yaml", **bench.SAME_NETWORK))


def test_all_contenders_have_the_same_network(config):
    ours = {name: tensor for name, tensor in VAE(config.model).named_parameters() if tensor.ndim == 2}
    layers = [*pairwise(contender.ENCODER), *pairwise(contender.DECODER)]
    assert [tuple(tensor.shape[::-1]) for tensor in ours.values()] == layers
    theirs = sum(parameter.numel() for parameter in origin.VAE().parameters())
    assert theirs == sum(parameter.numel() for parameter in VAE(config.model).parameters())
    assert config.train.batch_size == origin.BATCH


def test_both_scores_on_grey_values_agree(config):
    """The tutorial's loss is our neg-ELBO of the same weights, up to the noise of one sample of z."""
    torch.manual_seed(0)
    theirs, ours = origin.VAE(), VAE(config.model)
    weights = dict(theirs.named_parameters())
    for end in ("weight", "bias"):
        weights[f"heads.{end}"] = torch.cat([weights.pop(f"mu.{end}"), weights.pop(f"logvar.{end}")])
    order = ["encoder.0", "encoder.2", "heads", "decoder.0", "decoder.2", "decoder.4"]
    names = [f"{layer}.{end}" for layer in order for end in ("weight", "bias")]
    ours.load_state_dict(dict(zip(ours.state_dict(), (weights[name] for name in names), strict=True)))
    images = torch.rand(500, 784, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rate, distortion, *_ = metrics.bounds(ours, images, 4, torch.Generator().manual_seed(0))
    assert origin.neg_elbo_grey(theirs, images) == pytest.approx((rate + distortion).mean().item(), abs=0.05)


def test_contenders_take_turns(tmp_path):
    """A contender is a process that measures one turn for each line of input."""
    path = processes.variant(tmp_path / "params.yaml", **bench.SAME_NETWORK)
    started = time.perf_counter()
    seconds = processes.alternate(["evaluation_floor"], path, tmp_path, rounds=1)
    assert 0 < seconds["evaluation_floor"] < time.perf_counter() - started


def test_a_process_is_measured(tmp_path):
    """Its time and its peak memory are measured. A failure ends the benchmark with the output of the process."""
    command = "python -c 'import time; x = bytearray(200 << 20); time.sleep(0.5)'"
    started = time.perf_counter()
    measured = processes.measure(command, tmp_path, processes.environment())
    assert 0.5 < measured.seconds < time.perf_counter() - started
    assert 200 < measured.peak_mib < 300
    with pytest.raises(SystemExit, match="exit code 3"):
        processes.measure("exit 3", tmp_path, processes.environment())


def test_growth_measures_a_row(tmp_path):
    """The data are random images instead of MNIST."""
    for name, count in (("train", 60), ("t10k", 20)):
        images = torch.randint(0, 256, (count, 784), dtype=torch.uint8).numpy().tobytes()
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx.header("images", count) + images)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx.header("labels", count) + bytes(count))
    for samples in (0, 8):
        row = growth.row("x", tmp_path, tmp_path, 10, samples, channels=[2, 2])
        assert row["seconds"] > 0
        assert row["peak_mib"] > 50


def test_the_page_of_speed_shows_the_measured_figures(root):
    kinds = json.loads((root / "metrics/bench.json").read_text())
    page = (root / "docs/speed.md").read_text()
    assert readme.insert(page, tables.table(kinds), "bench") == page


def test_each_part_and_kind_stands_alone(root):
    """A part that was not measured has no row, and the rows of another kind of CPU stay."""
    (figures,) = [kind for kind in json.loads((root / "metrics/bench.json").read_text()).values() if "growth" in kind]
    for part, key in tables.PARTS.items():
        alone = {name: value for name, value in figures.items() if name in key or name.startswith(PREFIXES[part])}
        shown = tables.table({"one": alone, "other": {}})
        assert ("| one |" in shown or "**one.**" in shown) == (key in figures)
        assert "other" not in shown
    both = tables.table({"one": figures, "other": figures})
    assert both.count("| one |") == both.count("| other |") > 3


def test_a_part_measured_into_a_new_file_keeps_other_kinds(tmp_path, monkeypatch):
    """`make bench PART=growth` with no file, then with the file of another kind of CPU."""
    row = {"what": "epoch", "seconds": 1.0, "peak_mib": 2.0}
    monkeypatch.setattr(bench.growth, "growth", lambda *_: [row])
    page, result = tmp_path / "page.md", tmp_path / "bench.json"
    page.write_text("<!-- bench: begin -->\n<!-- bench: end -->\n")
    for kind in ("one", "other"):
        monkeypatch.setattr(bench, "kind", lambda kind=kind: (kind, {}))
        bench.main(tmp_path, result, page, ["growth"])
    assert json.loads(result.read_text()) == {kind: {"machine": {}, "growth": [row]} for kind in ("one", "other")}
    assert "| epoch | one | 1.0 | 2 |\n| epoch | other | 1.0 | 2 |" in page.read_text()


def test_figures_follow_from_each_other(root):
    """Each ratio is the ratio of its two times, and the parts sum to the whole."""
    (figures,) = [kind for kind in json.loads((root / "metrics/bench.json").read_text()).values() if "growth" in kind]
    ours = figures["epoch_seconds_ours"]
    assert figures["epoch_speedup"] == pytest.approx(figures["epoch_seconds_origin"] / ours, rel=1e-2)
    assert figures["floor_fraction"] == pytest.approx(figures["epoch_seconds_floor"] / ours, rel=1e-2)
    parts = figures["fixed_cost_parts_seconds"]
    assert sum(parts.values()) == pytest.approx(figures["fixed_cost_seconds"], rel=1e-2)
    spent = figures["training_seconds"] + figures["evaluation_seconds"] + figures["fixed_cost_seconds"]
    assert spent == pytest.approx(figures["repro_seconds"], rel=1e-2)
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert parts.keys() - {"dvc"} == figures["peak_memory_mib"].keys() == stages.keys()


def test_the_whole_pipeline_is_compared_and_shown(tmp_path, monkeypatch, capsys):
    """The tutorial and the pipeline take turns. The ratio is the median of the ratios of the turns."""
    (tmp_path / "whole/metrics").mkdir(parents=True)
    (tmp_path / "whole/metrics/evaluation.json").write_text('{"neg_elbo_grey_nats": 93.0, "nll_iw_nats": 84.7}')
    torch.save(origin.VAE().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx.header("labels", 5) + bytes(5))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx.header("images", 5) + bytes(5 * 784))
    turns = iter([100.0, 30.0, 120.0, 60.0])
    monkeypatch.setattr(bench, "measure", lambda *_: processes.Measured(next(turns), 1.0))
    monkeypatch.setattr(bench.cost, "clone", lambda *_: {})
    monkeypatch.setattr(bench.cost, "stage_seconds", lambda *_: (next(turns), {}))
    found = bench.whole(tmp_path, tmp_path)
    assert found["whole_ratio"] == pytest.approx((0.3 + 0.5) / 2)
    bench.show(found)
    assert "100.0 to 120.0" in capsys.readouterr().out
    assert "| 100.0 to 120.0 (" in tables.table({"one": found})
