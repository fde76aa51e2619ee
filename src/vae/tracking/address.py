"""The address of the store: how it is read, how it is shown, and what an error of the store means."""

from vae.runtime import command, network
from vae.runtime.network import shown

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from filelock import Timeout
from sqlalchemy import URL, Dialect, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from vae.errors import InputError
from vae.tracking.places import ARTIFACTS

SQLITE = "sqlite:///"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http://", "https://", "databricks")  # they have a place of their own for files
PACKAGES = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
LOCKED_SECONDS = 150  # that SQLite waits for another process
DATABASE_CURES = {  # for what SQLite and optuna say
    "no longer compatible with the table schema": "a study needs a database of its own, not MLflow's",
    "database is locked": "another process holds it; end that, and start again",
    "disk is full": "make room, and start again",
    "readonly database": "make the file and its folder writable, and start again",
    "disk image is malformed": "the file is damaged; bring back a copy, or name another store in MLFLOW_TRACKING_URI",
}
TRACKING = "MLFLOW_TRACKING_URI"  # the variable with the address of the store
MOST_LETTERS = 400  # of the reason in a message
# Set by a system that runs the pipeline as one of its own runs. A state has a run of its own.
NOT_USED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_ARTIFACT_URI")


def store_uri(root: Path) -> str:
    """The address of the store: `MLFLOW_TRACKING_URI`, or a database in the main repository.
    Raises InputError like `absolute`."""
    return absolute(os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{SQLITE}mlflow.db", root)


def registry_uri(root: Path) -> str | None:
    """The address of the registered models if it is not the store: `MLFLOW_REGISTRY_URI`."""
    uri = os.environ.get("MLFLOW_REGISTRY_URI", "").strip()
    return absolute(uri, root) if uri else None


def absolute(uri: str, root: Path) -> str:
    """An address in which the path of a SQLite database is absolute. A relative one starts at the main repository,
    also in the copy in which a temporary experiment runs.
    Raises InputError if MLflow keeps no runs at such an address, or only in memory."""
    if uri.startswith(SERVERS):
        return uri
    url = database(uri)
    if url is None or url.get_backend_name() not in DATABASES:
        raise InputError(
            f"MLflow store {shown(uri)}: neither a database nor a server; use for example {SQLITE}mlflow.db or "
            "http://<host>:5000 (`mlflow migrate-filestore` moves runs out of a folder)"
        )
    if url.get_backend_name() != "sqlite":
        if uri.count("@") > 1:  # a part of the password would be taken for the host, and shown
            raise InputError(f"MLflow store {shown(uri)}: write each @ but the one before the host as %40")
        return uri
    if not url.database or url.database.startswith((":memory:", "file:")) or "mode" in url.query:
        raise InputError(f"MLflow store {uri}: needs the path of a file, for example {SQLITE}mlflow.db")
    # A percent sign or a question mark has a meaning in an address. MLflow needs all other letters as they are.
    path = re.sub(r"%(?=[0-9a-fA-F]{2})", "%25", str(root.resolve() / url.database)).replace("?", "%3F")
    return f"{url.drivername}:///{path}{uri[uri.index('?') :] if '?' in uri else ''}"


def database(uri: str) -> URL | None:
    """The parts of the address of a database, or None if it is none."""
    try:
        return make_url(uri)
    except (ArgumentError, ValueError):  # ValueError: the port is no number
        return None


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite database, or None for another store."""
    url = database(uri)
    return Path(url.database) if url and url.database and url.get_backend_name() == "sqlite" else None


def reason(error: BaseException) -> str:
    """The message of an error in one line, without passwords and not too long."""
    line = shown(" ".join(str(error).partition("(Background on this error")[0].split()))  # SQLAlchemy's last words
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]}…"


class OutOfPatience(BaseException):
    """The store took too long. It is no Exception, because client libraries swallow those, and try again."""


def patience() -> float:
    """The seconds after which a script gives up on the store. Raises InputError if the variable is no such number."""
    given = os.environ.get("STORE_PATIENCE", "300")
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", given) or not float(given):
        raise InputError(f"STORE_PATIENCE={given}: not a number of seconds")
    return float(given)


@contextmanager
def bounded() -> Iterator[None]:
    """Ends the block with OutOfPatience if it takes too long. Time-outs of reads do not: a server can send a byte now
    and then, or ask to come back in ten minutes. Only the main thread can be ended so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: object) -> None:
        raise OutOfPatience

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, patience(), 1)  # then each second: MLflow also asks the store to end the run
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@event.listens_for(Engine, "do_connect")
def _wait_to_connect(dialect: Dialect, _record: object, _arguments: object, options: dict[str, Any]) -> None:
    """SQLite waits for a process that has locked the database."""
    if dialect.name == "sqlite":
        options["timeout"] = max(options.get("timeout", 0), LOCKED_SECONDS)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _wait_to_execute(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
    """MLflow sets a shorter time for each of its sessions."""
    return statement.replace("busy_timeout = 20000", f"busy_timeout = {1000 * LOCKED_SECONDS}"), parameters


@contextmanager
def store_errors(uri: str, variable: str = TRACKING) -> Iterator[None]:
    """Turns any error of the store into an InputError that names it and the way out: the variable with its address.
    An OSError with a file name passes, because its message is clear already."""
    try:
        yield
    except InputError:
        raise
    except Timeout as error:
        raise InputError(f"{error.lock_file}: held by another process; wait for it, or end it") from error
    except OutOfPatience as error:
        raise InputError(
            f"MLflow store {shown(uri)}: gave up after {patience():g} s; the next start records what is missing, and "
            "STORE_PATIENCE=<seconds> waits longer"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in command.CURES):
            raise
        name = "MLflow store" if variable == TRACKING else variable
        raise InputError(f"{name} {shown(uri)}: {_cure(error, uri, variable)}") from error


def _cure(error: Exception, uri: str, variable: str) -> str:
    """The error in one line that ends with the way out."""
    address = uri if shown(uri) == uri else f"${variable}"
    if isinstance(error, ImportError) and error.name:
        package = PACKAGES.get(error.name, error.name)
        return f"this address needs the package {error.name}; `pip install {package}`, or name another driver in it"
    if found := re.search(r"out-of-date database schema \(found version (\w+)", str(error)):
        if not any(Path(mlflow.__file__).parent.glob(f"store/db_migrations/versions/{found[1]}_*.py")):
            return f"made by a newer MLflow; install that one, or name another store in {variable}"
        file = sqlite_file(uri)
        backup = f"`cp '{file}' '{file}.backup'`" if file else "back up the database"
        return f'made by an older MLflow; end its server, {backup}, then `mlflow db upgrade "{address}"`'
    if "error code 401" in str(error):
        return "the server wants a user and a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    cure = next((cure for words, cure in DATABASE_CURES.items() if words in str(error)), f"check {variable}")
    return f"{network.fault(error, uri) or reason(error)}; {cure}"


def reach(uri: str, root: Path) -> None:
    """Connects to a database once, because MLflow tries ten times, for minutes.
    Creates a new SQLite store under another name, so that a killed process does not leave half a schema."""
    if uri.startswith(SERVERS):
        return
    file = sqlite_file(uri)
    if file and not file.exists():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_name(f"{file.name}.partial")
        partial_file.write_bytes(b"")
        try:
            SqlAlchemyStore(absolute(f"sqlite:///{partial_file}", root), (root / ARTIFACTS).as_uri())._dispose_engine()
            os.replace(partial_file, file)
        finally:
            partial_file.unlink(missing_ok=True)
    create_engine(uri, poolclass=NullPool).connect().close()


@contextmanager
def made_by_another() -> Iterator[None]:
    """Passes if another machine has just made the thing of this name."""
    try:
        yield
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def drop_foreign_settings(experiment: str) -> None:
    """Removes the settings of a surrounding system from the environment of this process, and says so in one line.
    MLflow would take them for the run, the experiment or the files of the state."""
    values = {name: os.environ.pop(name, "") for name in NOT_USED}
    if names := [name for name, value in values.items() if value not in ("", experiment)]:
        message = f"not used: {', '.join(names)}; a state has a run of its own, in track.experiment ({experiment})"
        print(f"MLflow: {message}", file=sys.stderr)
