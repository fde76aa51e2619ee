"""What MLflow's pages show first: names, notes, the address of the remote, and the saved view."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.repo.experiments.utils import gen_random_name

from vae import params
from vae.tracking import page
from vae.tracking.page import Changed
from vae.tracking.store import CHAMPION_METRIC, Tag

COMMIT = ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--all", "--message", "state")


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


@pytest.fixture
def state(root):
    """A state of the committed parameters."""
    return SimpleNamespace(config=params.load(root / "params.yaml"), key="0123456789")


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    """A repository with a committed params.yaml, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    Path("params.yaml").write_text((root / "params.yaml").read_text())
    for command in (("init", "--quiet"), ("add", "--all"), COMMIT):
        git(*command)
    return tmp_path


def change(*changes: tuple[str, str]) -> None:
    """Replaces parts of params.yaml."""
    text = Path("params.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    Path("params.yaml").write_text(text)


def test_the_names_that_dvc_makes_up_are_told_from_those_of_users():
    assert all(page.generated(gen_random_name()) for _ in range(20))
    for name in ("wide", "quick-test", "ten-minutes", "latent-40", "two-hours-1", "Crank-pail", "crank-pail-2", ""):
        assert not page.generated(name), name


@pytest.mark.parametrize(
    ("experiment", "changed", "name"),
    [
        ("wide", ["model.latent_dim=40"], "wide"),
        ("crank-pail", ["model.latent_dim=40"], "latent_dim=40"),
        ("", ["model.latent_dim=40", "train.seed=1"], "latent_dim=40, train.seed=1"),  # several sections have a seed
        ("", ["data.name=digits", "train.epochs=9"], "digits, train.epochs=9"),
        (
            "",
            [f"train.{key}=1" for key in ("optimizer", "schedule", "refine_rate", "device", "warmup_steps", "x")],
            None,
        ),
        ("", ["model.encoder=[" + "512, " * 99 + "512]"], "encoder=[" + "512, " * 10 + "5"),
        ("crank-pail", [], "mnist-0123456"),
        ("", [], "mnist-0123456"),
    ],
)
def test_a_run_has_the_name_that_the_user_gave_or_what_was_changed(state, monkeypatch, experiment, changed, name):
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    pairs: Changed = {key: ("old", value) for key, _, value in (item.partition("=") for item in changed)}
    found = page.run_name(state, pairs)
    assert len(found) <= 300
    assert found == (name or "optimizer=1, schedule=1, refine_rate=1, device=1, 2 more")


def test_changed_params_are_those_of_the_stages_that_differ_from_the_commit(project, monkeypatch):
    assert page.changed_params(Path("params.yaml")) == {}
    change(("latent_dim: 32", "latent_dim: 40 "), ("tags: {}", "tags: {a: b}"), ("step_size: 0.3", "step_size: 0.4"))
    expected = {"model.latent_dim": ("32", "40")}
    assert page.changed_params(Path("params.yaml")) == expected
    git(*COMMIT)
    assert page.changed_params(Path("params.yaml")) == {}
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "HEAD~1")
    assert page.changed_params(Path("params.yaml")) == expected


def test_the_params_of_the_commit_may_be_of_an_older_version(project, monkeypatch):
    text = Path("params.yaml").read_text()
    change(("  resize: false           #", "  # "))
    git(*COMMIT)
    Path("params.yaml").write_text(text)
    assert page.changed_params(Path("params.yaml")) == {"data.resize": ("none", "false")}
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    assert page.changed_params(Path("params.yaml")) == {}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:p@ss@example.org/team/vae.git", "https://example.org/team/vae.git"),
        ("https://token@example.org/@team/vae?access_token=t#x", "https://example.org/@team/vae"),
        ("ssh://git@example.org:22/vae", "ssh://example.org:22/vae"),
        ("git@example.org:team/vae.git", "git@example.org:team/vae.git"),
        ("/home/me/secret/vae", ""),
        ("../vae", ""),
        ("file:///home/me/vae", ""),
    ],
)
def test_the_address_of_the_remote_has_no_credentials_and_no_private_folder(project, address, shown):
    assert page.remote(project) == ""
    git("remote", "add", "origin", address)
    assert page.remote(project) == shown


@pytest.mark.parametrize("given", [["-m", "why five"], ["--message", "why five"], ["--message=why five"]])
def test_the_command_of_dvc_gives_the_message_and_the_start(tmp_path, root, given):
    """The nearest process named dvc above the stage, with the shell of the stage between them."""
    stage = f'{sys.executable} -c "from vae.tracking import page; print(*page.dvc_command())"; true'
    (tmp_path / "dvc").write_text(f"import subprocess\nsubprocess.run(['sh', '-c', {stage!r}])\n")
    command = [sys.executable, str(tmp_path / "dvc"), "exp", "run", *given, "-S", "model.latent_dim=5"]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    started, _, message = done.stdout.strip().partition(" ")
    assert message == "why five"
    assert int(started) <= page.dvc_command()[0]


def test_the_note_says_what_the_figures_are_of(state):
    """Figures of another data set, binarization or test split can be told apart."""
    test = {"nll_iw_nats": 84.726, "nll_iw_nats_stderr": 0.2205, "neg_elbo_nats": 87.733, "importance_samples": 10}
    test |= {"test_images": 10000, "binarization_sha256": "81da61c13385"}
    tags = {Tag.COMMIT: "0123456789", Tag.DIRTY: "true", Tag.EXPERIMENT: "crank-pail", Tag.MESSAGE: "why"}
    tags |= {
        Tag.REMOTE: "https://example.org/vae",
        "machine.cpu": "Z",
        "model.precision": "fp32",
        "machine.device": "cpu",
    }
    validation = {CHAMPION_METRIC: 88.5, "validation_images": 5000}
    changed = {"model.latent_dim": ("32", "40")}
    text = page.note("latent_dim=40", "f00d", state, tags, changed, test, validation)
    for part in (
        "**latent_dim=40** (experiment crank-pail): why\n\n- ",
        "NLL bound (K=10) **84.73** ± 0.22, neg-ELBO **87.73** ± 0.00. Validation: neg-ELBO **88.50**.",
        "`mnist`, binarization `dynamic`: 10000 test images (pixels\n  `81da61c1`), 5000 validation images.",
        "Differs from the committed params.yaml: `model.latent_dim: 40` (committed: `32`).",
        "Code: 0123456 with changes https://example.org/vae",
        "`make reproduce RUN=f00d`",
        "Trained on: Z, cpu, fp32\n",
    ):
        assert part in text, part
    plain = page.note("name", "f00d", state, {Tag.COMMIT: "0", Tag.DIRTY: "false"}, {}, test, validation)
    assert plain == plain.strip()  # as the description of the version keeps it
    assert plain.startswith("**name**\n\n")
    assert "Differs from the committed params.yaml: nothing." in plain
    assert "Trained on: a machine that is not known" in plain


def test_the_saved_view_has_the_figures_first_and_pictures_without_parameters():
    envelope = json.loads(page.view(["model.latent_dim"], ["samples_grid"]))
    assert set(envelope) == {"name", "createdAt", "updatedAt", "state"}  # as MLflow's UI writes it
    state = json.loads(envelope["state"])
    assert state["orderByKey"] == f"metrics.`{CHAMPION_METRIC}`"
    assert state["selectedColumns"] == [
        *(f"metrics.`{name}`" for name in page.FIGURES),
        *(f"params.`{name}`" for name in ("data.name", "data.binarization", "model.latent_dim")),
        "attributes.`Duration`",
    ]
    cards = state["compareRunCharts"]
    assert [card["type"] for card in cards] == ["LINE", "BAR", "BAR", "BAR", "SCATTER", "PARALLEL", "IMAGE"]
    axes = [cards[4][name] for name in ("xaxis", "yaxis")]  # the UI draws no point without the type
    assert axes == [{"type": "METRIC", "key": f"{name}_nats"} for name in ("rate", "distortion")]
    assert [card["metricKey"] for card in cards[:4]] == list(page.FIGURES)
    assert cards[-1]["showRunParams"] is False
    assert len({card["uuid"] for card in cards}) == len(cards)
    sections = {section["uuid"]: section["columns"] for section in state["compareRunSections"]}
    assert sections == {"figures": 3, "pictures": 1}
    assert {card["metricSectionId"] for card in cards} == set(sections)
    unchanged = json.loads(json.loads(page.view([], []))["state"])["compareRunCharts"]
    assert "PARALLEL" not in {card["type"] for card in unchanged}


class Experiment:
    """A store in memory with one experiment, which counts the requests."""

    def __init__(self) -> None:
        self.experiment = SimpleNamespace(experiment_id="7", tags={})
        self.requests: list[str] = []

    def set_experiment_tag(self, identity: str, name: str, value: str) -> None:
        assert identity == "7"
        assert len(value) < 20000  # MLflow's limit
        self.experiment.tags[name] = value
        self.requests.append(name)

    def columns(self) -> list[str]:
        return json.loads(json.loads(self.experiment.tags[page.VIEW_TAG])["state"])["selectedColumns"]


def test_an_experiment_is_described_once_and_its_view_grows():
    store = Experiment()
    address, tags = page.describe(store), store.experiment.tags
    assert address == "#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=vae"
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == CHAMPION_METRIC
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "False"
    tags["mlflow.note.content"] = "the user's own"
    store.requests.clear()
    assert page.describe(store) == address
    assert not store.requests
    page.describe(store, {"model.latent_dim": ("1", "2"), "data.name": ("mnist", "digits")}, ["samples_grid"])
    page.describe(store, {"train.seed": ("0", "1")}, ["samples_grid"])
    assert store.columns()[6:-1] == ["params.`model.latent_dim`", "params.`train.seed`"]
    store.requests.clear()
    page.describe(store, {"model.latent_dim": ("1", "3")}, ["samples_grid"])
    assert not store.requests
    assert tags["mlflow.note.content"] == "the user's own"
    page.describe(store, {f"train.{number}": ("", "") for number in range(99)}, [f"p{number}" for number in range(99)])
    assert len(store.columns()) == 6 + page.MOST_SHOWN + 1
