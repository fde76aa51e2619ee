"""`make ui`: which address it prints and opens, and which address it refuses. A real server: tests/pipeline."""

import socket
import subprocess
from pathlib import Path

import pytest

from tools import ui
from vae.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def busy():
    """A port on which another program listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def free() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_busy_port_is_named_with_the_way_out(busy, host):
    with pytest.raises(InputError, match=rf"^another program uses port {busy} .*; PORT=5001 make ui$"):
        ui.check_free(host, str(busy))
    ui.check_free(host, free())


@pytest.mark.parametrize("port", ["", "x", "-1", "0", "65536", "5000.0"])
def test_what_is_no_port_is_named(port):
    with pytest.raises(InputError, match=rf"^PORT={port}: not a port; PORT=5001 make ui$"):
        ui.check_free("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])  # addresses that no machine has
def test_an_address_of_another_machine_is_named(host):
    with pytest.raises(InputError, match=rf"^HOST={host}: no address of this machine; make ui HOST=0\.0\.0\.0"):
        ui.check_free(host, free())


def test_only_names_of_this_machine_are_allowed():
    """Also for changes: MLflow refuses them from pages of other addresses."""
    local = ui.allowed("127.0.0.1", "5000")
    assert local["MLFLOW_SERVER_ALLOWED_HOSTS"] == "127.0.0.1,127.0.0.1:5000,localhost,localhost:5000"
    assert local["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:5000,http://localhost:5000"
    every = ui.allowed("0.0.0.0", "5000")["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {f"{socket.gethostname()}:5000", "localhost:5000", "127.0.0.1:5000"} <= set(every)
    assert "*" not in "".join(every)


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ([], '"127.0.0.1" "${PORT:-5000}" --open ""'),
        (["HOST=0.0.0.0", "OPEN=1"], '"0.0.0.0" "${PORT:-5000}" --open "1"'),
    ],
)
def test_make_takes_the_host_from_its_command_line_alone(monkeypatch, words, passed):
    """Some shells export HOST as the name of the machine, and the UI must not be open to others unasked."""
    monkeypatch.setenv("HOST", "this-machine")
    command = ["make", "--dry-run", "-o", "setup", "ui", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"tools/ui.py params.yaml {passed}\n" in done.stdout
