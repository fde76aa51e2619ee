"""`make ui`: the MLflow UI on the store of the project."""

from vae.runtime import command, repository

import os
import socket
import sys
from pathlib import Path

from vae.errors import InputError
from vae.params import load
from vae.tracking.address import SERVERS, shown
from vae.tracking.store import Store


def main(params: Path, port: str) -> None:
    if not port.isdigit() or int(port) > 65535:
        raise InputError(f"PORT={port}: not a port; PORT=5001 make ui")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(port))) == 0:
            raise InputError(f"another program uses port {port} (AirPlay uses 5000 on macOS); PORT=5001 make ui")
    experiment = load(params).track.experiment
    store = Store(repository.main_repository(), experiment)  # created, or made to find its files after a move
    if store.uri.startswith(SERVERS):
        raise InputError(f"the UI of this store is at {shown(store.uri)}")
    print(f"MLflow UI: http://127.0.0.1:{port}  (choose Model training at the top left, then {experiment})", flush=True)
    # The address is a variable, because everyone on the machine can read the arguments of a process.
    settings = {"MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execve(sys.executable, server, os.environ | settings)


if __name__ == "__main__":
    command.run(main)
