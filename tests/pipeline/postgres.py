"""A real PostgreSQL with a port and a folder of its own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError

from tests.pipeline.project import clean_environment, wait_for

USER, PASSWORD = "team", "p@ss/w%rd"  # letters that an address must encode
ENCODED = "p%40ss%2Fw%25rd"


def program(name: str) -> str | None:
    """A program of PostgreSQL. Debian has them in a folder for each version, and not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@contextmanager
def postgres() -> Iterator[str]:
    """The address of the database `postgres`, with the password in it. Skips the test if something is missing."""
    for module in ("psycopg", "psycopg2"):
        pytest.importorskip(module, reason=f"{module} is missing: `make test-scale` installs requirements-scale.lock")
    if not (initdb := program("initdb")) or not (server := program("postgres")):
        pytest.skip("PostgreSQL is missing: `apt-get install postgresql`")
    # PostgreSQL does not run as root, and other users cannot enter the folders of pytest.
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="vae-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        environment, data = clean_environment(), str(folder / "data")
        make = [initdb, "-D", data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync"]
        subprocess.run([*user, *make], cwd="/", env=environment, check=True, stdout=subprocess.DEVNULL)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(folder), "-p", str(port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*user, server, "-D", data, *settings], cwd="/", env=environment, stderr=log)
        address = f"postgresql://{USER}:{ENCODED}@127.0.0.1:{port}/postgres"

        def up() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with suppress(OperationalError):
                create_engine(address, poolclass=NullPool).connect().close()
                return True
            return False

        try:
            wait_for(up)
            yield address
        finally:
            subprocess.run([*user, "kill", "-INT", (folder / "data/postmaster.pid").read_text().split()[0]], check=True)
            process.wait()
    finally:
        shutil.rmtree(folder)
