"""The worked example of docs/your-images.md, and what runs again after a change of the images."""

from vae.runtime import files

import hashlib
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.pipeline.project import ROOT, wait_for
from vae import data

pytestmark = pytest.mark.pipeline

TEXT = (ROOT / "docs/your-images.md").read_text()


def test_the_example_of_the_documentation(project):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    command = re.findall(r"^\$ (dvc exp run --name (?:.*\\\n)*.*)$", TEXT, flags=re.M)[0]
    project.run("python", "-c", code)
    assert len([*project.folder.glob("pictures/*/*.png")]) == 300
    printed = project.run(*shlex.split(command)).stdout
    assert "from pictures: 240 training images and 60 test images" in printed
    assert "data.validation: 48 images, at most a fifth of 240, instead of 300" in printed
    run = project.assert_whole(project.recorded())
    assert run.info.run_name == "mine"
    assert run.data.params["data.path"] == "pictures"
    assert run.data.metrics["validation_images"] == project.json("metrics/validation.json")["validation_images"] == 48
    digests = [f"{path.name} {files.sha256(path)}\n" for path in files.files_below(project.folder / "data")]
    assert run.data.tags["vae.data_sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert "path: pictures" in project.text(project.recorded(), "dvc.lock")

    # Digits come out: a sample is nearer to an image than the mean image is.
    images = data.unit(data.load(project.folder / "data", "train").images)
    means = load_file(project.folder / "samples/samples.safetensors")["means"]
    nearest = torch.cdist(means, images).min(dim=1).values.mean()
    blurred = torch.cdist(images.mean(dim=0, keepdim=True), images).mean()
    assert nearest < 0.8 * blurred
    what_runs_again(project, run)


def what_runs_again(project, first) -> None:
    """After a change of an image everything, and after a change of the path alone no training."""
    assert "up to date" in project.dvc("repro").stdout
    elsewhere = shutil.copytree(project.folder / "pictures", project.home / "elsewhere")  # which git does not know
    moved = ("--set-param", f"data.path={elsewhere}")
    printed = project.dvc("exp", "run", "--temp", "--name", "moved", *moved).stdout
    assert "Running stage 'download'" in printed
    assert "Running stage 'train'" not in printed
    project.dvc("exp", "run", "--queue", "--name", "grey", *moved, "--set-param", "data.grey=true")
    project.dvc("queue", "start", "--jobs", "1")
    wait_for(lambda: re.search("Success|Failed", project.dvc("queue", "status").stdout), 1)
    for name in ("moved", "grey"):
        run = project.assert_whole(project.recorded_by(name))
        assert run.data.tags["vae.data_sha256"] == first.data.tags["vae.data_sha256"]
    failed = project.dvc("exp", "run", "--set-param", "data.path=nowhere", check=False)
    assert failed.returncode
    assert "nowhere" in failed.stderr
    project.params(data={"path": "pictures"})

    changed = next((project.folder / "pictures").glob("*/*.png"))
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    printed = project.dvc("repro").stdout
    assert all(
        f"Running stage '{stage}'" in printed for stage in ("download", "train", "evaluate", "generate", "track")
    )
    run = project.assert_whole(project.recorded())
    assert run.data.tags["vae.data_sha256"] != first.data.tags["vae.data_sha256"]
    versions = project.client.search_model_versions("name = 'vae-folder'")
    assert len({version.tags["validation_split"] for version in versions}) == 2
    assert int(project.client.get_model_version_by_alias("vae-folder", "champion").version) == 1

    Image.new("RGB", (40, 30), "red").save(changed)
    for option, reason in (
        ("", "is in colour; data.grey: true"),
        ("grey", "40x30 pixels, not 28x28; data.resize: true"),
    ):
        project.params(data={option: True} if option else {})
        error = project.error("pipeline/download.py", "params.yaml", "new")
        assert changed.name in error
        assert reason in error
    assert not (project.folder / "new").exists()
