"""`make ui`: the MLflow UI on the store of the project."""

from vae.runtime import command
from vae.runtime.network import shown

import errno
import os
import socket
import sys
import time
import webbrowser
from contextlib import suppress
from pathlib import Path

import psutil

from vae.errors import InputError
from vae.tracking import page
from vae.tracking.address import SERVERS
from vae.tracking.store import open_store

EVERY, LOCAL = "0.0.0.0", {"127.0.0.1", "localhost"}


def main(params: Path, host: str, port: str, *, open: str) -> None:
    check_free(host, port)
    store = open_store(params)  # created, or made to find moved files
    path = page.describe(store)
    if store.uri.startswith(SERVERS):
        raise InputError(f"the UI of this store is at {shown(store.uri)}/{path}")
    address = f"http://{socket.gethostname() if host == EVERY else host}:{port}/{path}"
    print(f"MLflow UI: {address}", flush=True)
    if open and os.fork() == 0:
        for _ in range(600):  # at most two minutes
            with suppress(OSError), socket.create_connection((host, int(port))):
                webbrowser.open(address)
                break
            time.sleep(0.2)
        os._exit(0)
    # The address is a variable, because everyone on the machine can read the arguments of a process.
    settings = {"MLFLOW_BACKEND_STORE_URI": store.uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    os.execve(sys.executable, server, allowed(host, port) | os.environ | settings)


def check_free(host: str, port: str) -> None:
    """Raises InputError if no server can listen at this address."""
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"PORT={port}: not a port; PORT=5001 make ui")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except PermissionError as error:
            raise InputError(f"PORT={port}: only root may use it; PORT=5001 make ui") from error
        except OSError as error:
            busy = f"another program uses port {port} (AirPlay uses 5000 on macOS); PORT=5001 make ui"
            wrong = f"HOST={host}: no address of this machine; make ui HOST={EVERY} takes all of them"
            raise InputError(busy if error.errno == errno.EADDRINUSE else wrong) from error


def allowed(host: str, port: str) -> dict[str, str]:
    """The names of this machine to which MLflow's server answers: by default only those of the machine itself."""
    names = {host, *LOCAL}
    if host == EVERY:
        addresses = {item.address for items in psutil.net_if_addrs().values() for item in items}
        names |= {socket.gethostname(), socket.getfqdn(), *(address for address in addresses if "." in address)}
    return {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(sorted(f"{name}{end}" for name in names for end in ("", f":{port}"))),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(sorted(f"http://{name}:{port}" for name in names)),
    }


if __name__ == "__main__":
    command.run(main)
