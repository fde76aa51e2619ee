"""The UI on the store of a project: it opens with the run list that has the figures."""

import json
import socket

import pytest
import requests

from tests.pipeline.project import CURVE, LIMIT_SECONDS, Project, wait_for

pytestmark = pytest.mark.pipeline


def test_the_ui_opens_with_the_runs_of_the_project(project: Project, tmp_path):
    """It answers to the names of this machine, and to no other."""
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ("python", "tools/ui.py", "params.yaml", "0.0.0.0", port, "--open", "1")
    started = project.start(*command, PYTHONPATH="src", BROWSER=f"{browser} %s")
    address = wait_for(lambda: opened.is_file() and opened.read_text().strip())
    assert f"MLflow UI: {address}\n" in started.files[0].read_text()
    experiment = project.client.get_experiment_by_name("vae")
    page = f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=vae"
    assert address == f"http://{socket.gethostname()}:{port}{page}"
    view = json.loads(json.loads(experiment.tags["mlflow.sharedViewState.vae"])["state"])
    assert view["orderByKey"] == f"metrics.`{CURVE}`"
    assert f"metrics.`{CURVE}`" in view["selectedColumns"]

    def status(name: str) -> int:
        """The answer to a search of the UI's own page, under this name of the machine."""
        headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        url = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/runs/search"
        body = {"experiment_ids": [experiment.experiment_id]}
        return requests.post(url, json=body, headers=headers, timeout=LIMIT_SECONDS).status_code

    assert [status(name) for name in (socket.gethostname(), "localhost", "127.0.0.1")] == [200] * 3
    assert status("elsewhere.example.org") == 403
    assert f"another program uses port {port}" in project.error(*command[1:3], "127.0.0.1", port, "--open", "")
    project.stop()
