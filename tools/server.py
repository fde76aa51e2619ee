"""`make server`: an MLflow server for a team. Its runs are in a database, and their files pass through the server."""

from vae.runtime import command
from vae.runtime.repository import main_repository, state_folder

import os
import secrets
import sys
from pathlib import Path

from sqlalchemy import NullPool, create_engine

from vae.errors import InputError
from vae.tracking.address import SERVERS, absolute, store_errors

DATABASE, PASSWORD, CONFIG = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_AUTH_CONFIG_PATH"
# Each user may change and delete all runs, because `track` deletes a run that a training has opened in vain.
USERS = "[mlflow]\ndefault_permission = MANAGE\nadmin_username = admin\ndatabase_uri = {}\n"


def main(auth: bool) -> None:
    uri = os.environ.get(DATABASE, "").strip()
    if not uri or uri.startswith(SERVERS):
        raise InputError(f"{DATABASE} must name a database, such as postgresql://<user>:<password>@<host>/<database>")
    uri = absolute(uri, Path())
    with store_errors(uri, DATABASE):
        create_engine(uri, poolclass=NullPool).connect().close()
    # The addresses are in variables and in a private file, because everyone can read the arguments of a process.
    settings = {DATABASE: uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if auth:
        if len(os.environ.get(PASSWORD, "")) < 12:
            raise InputError(f"AUTH=1: needs {PASSWORD}, the password of the user admin, with 12 letters or more")
        if CONFIG not in os.environ:
            file = state_folder(main_repository()) / "users.ini"
            file.touch(0o600)
            file.write_text(USERS.format(uri.replace("%", "%%")))
            settings[CONFIG] = str(file)
        settings["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex()
    server = [sys.executable, "-m", "mlflow", "server", *(["--app-name", "basic-auth"] if auth else [])]
    os.execve(sys.executable, server, os.environ | settings)


if __name__ == "__main__":
    command.run(main)
