"""The container file, the dev container, the compose file and the workflow: what they name exists, and no secret is in
them. Linters look for the rest, and a builder builds the container if there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE, WORKFLOW = ROOT / "compose.yaml", ROOT / ".github/workflows/pipeline.yaml"
TARGETS = set(re.findall(r"^([a-z./-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def test_every_make_target_that_they_use_exists():
    used = set()
    for path in (COMPOSE, WORKFLOW, ROOT / "Dockerfile", ROOT / ".devcontainer/devcontainer.json", ROOT / ".ci/run"):
        found = re.findall(r"(?:RUN .*|run: |\[|^|\"|, )make,? ([a-z./ -]+)", path.read_text(), flags=re.M)
        used |= {name for words in found for name in words.split()}
    assert {"run", "setup", "server", "test-scale", ".venv/scale"} <= used <= TARGETS


def test_ci_runs_what_a_contributor_runs():
    """The workflow installs what only root may install, and leaves the rest to the script."""
    assert re.findall(r"^make (.*)$", (ROOT / ".ci/run").read_text(), flags=re.M) == ["lint", "test", "test-scale"]
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step][-2:] == [
        "sudo apt-get install -y -qq postgresql",
        ".ci/run",
    ]


def test_every_image_and_every_action_has_a_version():
    images = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), flags=re.M)
    stages = set(re.findall(r"^FROM .* AS (\w+)$", (ROOT / "Dockerfile").read_text(), flags=re.M))
    images = [name for name in images if name not in stages]
    images += [service["image"] for service in yaml.safe_load(COMPOSE.read_text())["services"].values()]
    actions = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert images
    assert actions
    for name in images:
        assert re.search(r":\d+\.\d+", name), name
    for name in actions:
        assert re.search(r"@v\d+$", name), name


def test_the_image_of_the_project_has_its_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)[1]
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()
    assert {service["image"] for service in services if "build" in service} == {f"vae-pipeline:{version}"}


def test_every_password_comes_from_the_environment():
    """The compose file refuses to start without one. An example with a password would be used as it is."""
    for service in yaml.safe_load(COMPOSE.read_text())["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or ("://" in value and "@" in value):
                assert re.search(r"\$\{(DATABASE|ADMIN)_PASSWORD:\?\}", value), name


def test_a_build_gets_the_commits_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["*", "!.git"]
    assert not re.search(r"^(COPY|ADD) ", (ROOT / "Dockerfile").read_text(), flags=re.M)


def test_the_dev_container_is_a_target_of_the_container_file():
    folder = ROOT / ".devcontainer"
    described = json.loads((folder / "devcontainer.json").read_text())
    container = (folder / described["build"]["dockerfile"]).read_text()
    assert f" AS {described['build']['target']}\n" in container
    assert f" {described['remoteUser']} " in container


def test_a_pull_request_from_outside_gets_no_right_to_write():
    """`pull_request_target` would run its code with the rights of the repository, and so would a title in a command."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    for job in workflow["jobs"].values():
        assert not any("${{" in step.get("run", "") for step in job["steps"])


@pytest.mark.scale
@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)],
    ],
    ids=["container", "compose", "workflow"],
)
def test_a_linter_accepts(command):
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is missing: `make test-scale` installs requirements-scale.lock")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.scale
def test_the_container_builds():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no builder of containers answers here: `docker info`")
    subprocess.run([docker, "build", "--quiet", "--tag", "vae-pipeline:test", "."], cwd=ROOT, check=True)
    served = [docker, "run", "--rm", "vae-pipeline:test", "mlflow", "models", "serve", "--help"]
    subprocess.run(served, check=True, stdout=subprocess.DEVNULL)
