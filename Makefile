# Every target does its own set-up in .venv; there is nothing to install or to activate first.
.DEFAULT_GOAL := help
.PHONY: help run test test-fast lint ui setup which doctor reproduce leaderboard bounds bench
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

# Made anew only when the lock file or the package's own metadata has changed.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv --clear .venv
	python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

setup: .venv/installed  ## install requirements.lock into .venv

run: setup  ## the whole pipeline: dvc repro on MNIST, or on the bundled digits where no mirror answers
	@python pipeline/reachable.py params.yaml data && answer=0 || answer=$$?; \
	case $$answer in \
	0) dvc repro ;; \
	3) dvc exp run -S data.name=digits -S train.batch_size=64 -S train.epochs=60 -S train.augmentation=0.8 ;; \
	*) exit $$answer ;; \
	esac

test: setup  ## all tests: the fast ones, then those that run the real dvc and mlflow
	python -m pytest -q -m "not pipeline"
	python -m pytest -q -m pipeline

test-fast: setup  ## the fast tests only
	python -m pytest -q -m "not pipeline"

lint: setup  ## format, lint and types
	ruff format --check .
	ruff check .
	mypy

ui: setup  ## the MLflow UI on the project's store
	@case "$(MLFLOW_TRACKING_URI)" in http*) echo "the UI of this store is at $(MLFLOW_TRACKING_URI)"; exit 1 ;; esac
	@echo "MLflow UI: http://127.0.0.1:$${PORT:-5000}  (choose Model training at the top left, then the experiment)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri "$(MLFLOW_TRACKING_URI)" --host 127.0.0.1 --port $${PORT:-5000} --workers 1

which: setup  ## NAME=...: which run is this experiment, or which experiment is this run
	@python pipeline/which.py params.yaml metrics/mlflow.json "$(NAME)"

doctor: setup  ## find runs and experiments that have lost each other; MEND=1 mends them
	@python pipeline/doctor.py params.yaml metrics/mlflow.json $(if $(MEND),--mend)

bench: setup data/train-images-idx3-ubyte  ## PART=speed, quality, cost, growth, or all: into metrics/bench.json
	@PYTHONPATH=. python -m bench data metrics/bench.json README.md $(PART)

data/train-images-idx3-ubyte: | setup
	dvc repro download

leaderboard: setup  ## RECIPE=...: put the present results into metrics/leaderboard.csv and the README
	@python pipeline/leaderboard.py params.yaml metrics/evaluation.json metrics/quality.json metrics/mlflow.json \
	  models/vae.safetensors metrics/leaderboard.csv README.md recipes "$(RECIPE)"

bounds: setup  ## check the likelihood bound by annealed importance sampling, into metrics/annealing.json and the README
	@python pipeline/annealing.py params.yaml data models/vae.safetensors metrics/annealing.json README.md

reproduce: setup  ## RUN=...: run a recorded MLflow run again from scratch, and compare every file
	@python pipeline/reproduce.py params.yaml "$(RUN)"
