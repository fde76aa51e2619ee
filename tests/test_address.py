"""The address of the store: which ones there are, what is shown of them, and what their errors say."""

from vae.runtime.network import shown

import os
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from vae.errors import InputError
from vae.tracking import address
from vae.tracking.address import absolute, drop_foreign_settings, reason, sqlite_file, store_errors, store_uri


def test_the_store_is_in_the_main_repository_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " http://127.0.0.1:5000 ")
    assert store_uri(tmp_path) == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{root}/mlflow.db"),  # not in the copy of a temporary experiment
        ("sqlite:///mlflow.db?timeout=60", "sqlite:///{root}/mlflow.db?timeout=60"),
        ("sqlite+pysqlite:///sub/mlflow.db", "sqlite+pysqlite:///{root}/sub/mlflow.db"),
        ("sqlite:////else/where.db", "sqlite:////else/where.db"),
        ("sqlite:////else/where.db?timeout=60", "sqlite:////else/where.db?timeout=60"),
        ("postgresql://u:secret@host/db", "postgresql://u:secret@host/db"),
        ("mysql+pymysql://host/db?charset=utf8", "mysql+pymysql://host/db?charset=utf8"),
        ("https://u:secret@host/path", "https://u:secret@host/path"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_an_address_is_the_same_in_every_folder(tmp_path, uri, expected):
    assert absolute(uri, tmp_path) == expected.format(root=tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "file:./mlruns",
        "file:///tmp/mlruns",
        "./mlruns",
        "mlflow.db",
        "sqlite:mlflow.db",
        "ftp://host",
        "postgres://h/d",
    ],
)
def test_an_address_that_is_no_store_is_one_clear_error(tmp_path, uri):
    with pytest.raises(InputError, match=r"neither a database nor a server; use for example sqlite:///mlflow\.db"):
        absolute(uri, tmp_path)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_store_in_memory_would_be_lost_with_its_stage(tmp_path, uri):
    with pytest.raises(InputError, match="needs the path of a file"):
        absolute(uri, tmp_path)


@pytest.mark.parametrize("password", ["se@cret", "s/e@cret", "se@cr/cret", "@cret", "p?s@cret"])
def test_an_at_sign_in_a_password_must_be_encoded(tmp_path, password):
    """Otherwise the rest of the password would be a part of the name of the host, which errors show."""
    with pytest.raises(InputError, match="write each @ but the one before the host as %40") as caught:
        absolute(f"postgresql://u:{password}@host/db", tmp_path)
    assert "cret" not in str(caught.value)
    assert absolute("postgresql://u:se%40cret@host/db", tmp_path) == "postgresql://u:se%40cret@host/db"


@pytest.mark.parametrize("name", ["plain", "a b", "é:ü'", "100% sure", "a%20b", "a?b", "a#b", "-dash"])
def test_a_folder_may_have_any_name(tmp_path, name):
    """The address leads SQLAlchemy to the file, whatever is in its path."""
    (tmp_path / name).mkdir()
    uri = absolute("sqlite:///mlflow.db?timeout=9", tmp_path / name)
    assert sqlite_file(uri) == tmp_path / name / "mlflow.db"
    with create_engine(uri).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    assert (tmp_path / name / "mlflow.db").stat().st_size


def test_only_a_sqlite_store_has_a_file():
    assert [sqlite_file(uri) for uri in ("http://host", "databricks", "postgresql://host/db")] == [None] * 3


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:secret@host/db",
        "http://secret@host:5000",
        "API request to https://u:se@cret@host/api failed: https://u:secret@host/",
        "postgresql://host/db?user=u&password=secret&sslmode=require",
        "mssql+pyodbc:///?odbc_connect=PWD%3Dsecret",
    ],
)
def test_passwords_are_not_shown(text):
    for result in (shown(text), reason(ValueError(text))):
        assert "secret" not in result
        assert "cret@" not in result
        assert text.split("://")[0] in result


def test_an_address_without_a_password_is_shown_whole():
    for uri in ("sqlite:////home/me/my project/mlflow.db?timeout=60", "http://host:5000/path?x=y", "databricks"):
        assert shown(uri) == uri


def raised(error: Exception, uri: str) -> str:
    """The one line for an error of a store."""
    with pytest.raises(InputError) as caught, store_errors(uri):
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_error_has_no_password_and_is_not_cut_without_a_sign():
    uri = "http://u:secret@host"
    line = raised(ConnectionError(f"{uri}/api: refused\n" + "x" * 1000), uri)
    assert "secret" not in line
    assert line.startswith("MLflow store http://host: http://host/api: refused xxx")
    assert line.endswith("x…; check MLFLOW_TRACKING_URI")


def test_a_server_that_refuses_a_password_says_where_to_set_it():
    refusal = "API request to endpoint /api failed with error code 401 != 200. Response body: 'no'"
    line = raised(MlflowException(refusal), "http://host:5000")
    assert line.endswith("; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


def test_an_error_of_a_database_has_no_link_and_names_the_variable_of_its_address():
    error = OperationalError("SELECT 1", {}, Exception('database "none" does not exist'))
    assert "Background on this error" in str(error)
    ends = r"does not exist.*; check MLFLOW_BACKEND_STORE_URI$"
    named = store_errors("postgresql://u:secret@host/none", "MLFLOW_BACKEND_STORE_URI")
    with pytest.raises(InputError, match=ends) as caught, named:
        raise error
    assert "Background" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "package"), [("psycopg", "'psycopg[binary]'"), ("MySQLdb", "mysqlclient"), ("pyodbc", "pyodbc")]
)
def test_the_package_that_a_database_needs_is_named(module, package):
    line = raised(ModuleNotFoundError(f"No module named {module!r}", name=module), "postgresql://u:secret@host/db")
    assert f"needs the package {module}; `pip install {package}`" in line


def outdated(found: str) -> MlflowException:
    """MLflow's error for a database of another version."""
    return MlflowException(
        f"Detected out-of-date database schema (found version {found}, but expected 0000). Take a backup of your "
        "database, then run 'mlflow db upgrade <database_uri>' to migrate your database to the latest schema."
    )


def test_the_cure_for_a_store_of_an_older_mlflow_is_whole():
    line = raised(outdated("451aebb31d03"), "sqlite:////p/mlflow.db")
    assert line == (
        "MLflow store sqlite:////p/mlflow.db: made by an older MLflow; end its server, "
        "`cp '/p/mlflow.db' '/p/mlflow.db.backup'`, then `mlflow db upgrade \"sqlite:////p/mlflow.db\"`"
    )
    line = raised(outdated("451aebb31d03"), "postgresql://u:secret@host/db")
    assert 'back up the database, then `mlflow db upgrade "$MLFLOW_TRACKING_URI"`' in line


def test_a_store_of_a_newer_mlflow_cannot_be_upgraded():
    assert "made by a newer MLflow; install that one" in raised(outdated("ffffffffffff"), "sqlite:////p/mlflow.db")


def test_a_file_that_cannot_be_written_is_not_the_fault_of_the_uri():
    with pytest.raises(OSError, match="No space") as caught, store_errors("sqlite:///mlflow.db"):
        raise OSError(28, "No space left on device", "mlartifacts/model")
    assert caught.value.filename == "mlartifacts/model"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"), store_errors("http://127.0.0.1:9"):
        raise ConnectionError("refused")


def test_settings_of_a_surrounding_system_are_refused_in_one_line(monkeypatch, capsys):
    for name in address.NOT_USED:
        monkeypatch.setenv(name, f"value of {name}")
    drop_foreign_settings("vae")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(name in line and name not in os.environ for name in address.NOT_USED)
    assert "value of" not in line
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "vae")  # the same one
    drop_foreign_settings("vae")
    assert capsys.readouterr().err == ""


def test_the_registry_may_be_in_another_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    assert address.registry_uri(tmp_path) is None
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///models.db")
    assert address.registry_uri(Path(tmp_path)) == f"sqlite:///{tmp_path / 'models.db'}"
