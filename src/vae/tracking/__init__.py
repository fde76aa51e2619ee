"""Tracking in MLflow and DVC. These settings must come before `import mlflow`, which reads them."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # its errors are tracebacks; ours is one line
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; MLflow's own defaults wait minutes for a server
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds; PostgreSQL's client waits for as long as TCP does
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the address may have a password
os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # a stage ends at once, and would lose what is not written yet
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
