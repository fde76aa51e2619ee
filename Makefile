# Every target sets up .venv by itself; there is nothing to install or to activate first.
# It runs with GNU make 3.81 and bash 3.2, which macOS has.
.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-matrix test-scale lint deps ui server setup which sync doctor reproduce serving leaderboard bounds bench audit experiments soak search stress
SHELL := bash

PYTHON ?= python3
# TORCH=cpu takes torch from this index, or from a mirror of it. Otherwise torch comes with CUDA. The choice is kept.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

# DVC commits experiments. If git has no name and address for commits, the commits of DVC get these.
STAND_IN := GIT_COMMITTER_NAME=vae-pipeline GIT_COMMITTER_EMAIL=vae-pipeline@localhost
IDENTITY := git config user.name > /dev/null && git config user.email > /dev/null || export $(STAND_IN)

# Most tests wait for one process at a time, so two of them share two cores well.
TWO_AT_A_TIME := -n 2 --dist worksteal

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Repeated only if the lock file or the metadata of the package has changed, if another build of torch is asked for, or if
# the folder was moved: the commands of an environment have absolute paths.
.venv/installed: requirements.lock pyproject.toml
	@said="$$(LC_ALL=C git cat-file -e HEAD:./dvc.yaml 2>&1)" && exit; set -f; \
	case "$$said" in *safe.directory*) ;; *) said="$$said; DVC needs git and a clone: use \`git clone\`, or make this \
	folder a repository with \`git init && git add --all && git commit -m start\`" ;; esac; \
	echo "error:" $$said >&2; exit 1
	@$(PYTHON) tools/install.py .venv requirements.lock "$(TORCH)" "$(TORCH_INDEX)"
	@echo '$(IDENTITY)' >> .venv/bin/activate
	@python -m vae.tracking.worktree

ifneq ($(TORCH),)
ifneq ($(TORCH),$(shell cat .venv/torch 2> /dev/null))
.PHONY: .venv/installed
endif
endif
ifneq ($(shell test ! -s .venv/installed || grep -qxF "$$(pwd -P)" .venv/installed || echo moved),)
.PHONY: .venv/installed
endif

setup: .venv/installed  ## install requirements.lock into .venv; TORCH=cpu: without the libraries for GPUs

run: setup  ## the whole pipeline: dvc repro on MNIST, or on the bundled digits if no mirror answers
	@$(IDENTITY); python tools/reachable.py params.yaml data && answer=0 || answer=$$?; \
	case $$answer in \
	0) dvc repro ;; \
	3) dvc exp run -S data.name=digits -S train.batch_size=64 -S train.epochs=60 -S train.augmentation=0.8 && \
	  echo "These are the bundled digits: their nats do not compare with the nats of MNIST." ;; \
	*) exit $$answer ;; \
	esac

test: setup  ## all tests: the fast ones, then those that run the real dvc and mlflow
	python -m pytest -q -m "not pipeline and not scale" $(TWO_AT_A_TIME)
	python -m pytest -q -m "pipeline and not matrix and not scale" $(TWO_AT_A_TIME)

test-fast: setup  ## the fast tests only
	python -m pytest -q -m "not pipeline and not scale" $(TWO_AT_A_TIME)

test-matrix: setup  ## every way in which a pipeline starts and ends, on every kind of store; takes half an hour
	python -m pytest -q -m matrix

# Repeated only if a lock file has changed.
.venv/scale: .venv/installed requirements-scale.lock
	@python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-scale.lock
	@touch $@

# One file after the other, because a file shares its servers. The farm takes longest, and comes first.
test-scale: setup  ## a team's server, its cache, its searches, many processes; skips what this machine lacks
	@$(MAKE) --no-print-directory .venv/scale || echo "tests that need requirements-scale.lock are skipped"
	python -m pytest -q -rs -m scale -n 2 --dist loadfile --no-loadscope-reorder

lint: setup  ## format, lint, types, and the deps of the stages, by pre-commit
	pre-commit run --all-files

# `--strict`: a package that the service does not know is an error too. Otherwise no answer would look like a good one.
audit: setup  ## look for known vulnerabilities of the packages in requirements.lock; asks the package index
	@command -v uv > /dev/null || { echo "error: uv is missing; \`pip install uv\`, then \`make audit\`" >&2; exit 1; }
	@uv tool run pip-audit==2.10.1 --strict --no-deps --disable-pip --progress-spinner off --requirement requirements.lock

deps: setup  ## write the imports of each stage into the deps of dvc.yaml and quality/dvc.yaml
	@python tools/deps.py dvc.yaml quality/dvc.yaml

ui: setup  ## the MLflow UI on the project's store; PORT=5001, HOST=0.0.0.0 (for other machines), OPEN=1 (a browser)
	@python tools/ui.py params.yaml "$(if $(filter command,$(firstword $(origin HOST))),$(HOST),127.0.0.1)" "$${PORT:-5000}" --open "$(OPEN)"

server: .venv/scale  ## an MLflow server for a team, on the database in MLFLOW_BACKEND_STORE_URI; AUTH=1: with users
	@python tools/server.py $(if $(AUTH),--auth)

experiments: setup  ## a table of all DVC experiments: changed params, figures, MLflow runs; the best first
	@python tools/experiments.py params.yaml metrics/mlflow.json \
	  --validation metrics/validation.json --evaluation metrics/evaluation.json

which: setup  ## NAME=...: the run of this experiment, or the experiment of this run
	@python tools/which.py params.yaml metrics/mlflow.json "$$NAME"

sync: setup  ## give the present state its MLflow run without running anything; REV=... a commit or experiment; DRY=1
	@python tools/sync.py params.yaml metrics/mlflow.json "$$REV" $(if $(DRY),--dry)

doctor: setup  ## what is wrong with git, environment, store, links and machine; MEND=1 mends what it can
	@$(IDENTITY); python tools/doctor.py params.yaml metrics/mlflow.json $(if $(MEND),--mend) $(if $(ALL),--every)

reproduce: setup  ## RUN=...: run a recorded MLflow run again from scratch, and compare every file
	@python tools/reproduce.py params.yaml "$$RUN"

serving: setup  ## RUN=...: log the model of a run again, with the present code of src/vae/serving/, as a new version
	@python tools/serving.py params.yaml "$$RUN"

leaderboard: setup  ## RECIPE=...: put the present results into metrics/leaderboard.csv and the tables of results
	@python tools/leaderboard.py params.yaml --recipe "$$RECIPE" --recipes recipes --model models/vae.safetensors \
	  --evaluation metrics/evaluation.json --quality metrics/quality.json --run metrics/mlflow.json \
	  --board metrics/leaderboard.csv --readme README.md --page docs/results.md

search: setup  ## trials of search.yaml, each an experiment; PUSH=...: the git remote of a farm, to which they are pushed
	@$(IDENTITY); python tools/search.py params.yaml search.yaml metrics/validation.json "$$PUSH"

bounds: setup  ## check the likelihood bound by annealed importance sampling; writes metrics/annealing.json, docs/bounds.md
	@python tools/bounds.py params.yaml data models/vae.safetensors \
	  --result metrics/annealing.json --page docs/bounds.md

bench: setup data/train-images-idx3-ubyte  ## PART=whole, speed, quality, cost, growth, or all; writes metrics/bench.json, docs/speed.md
	@PYTHONPATH=. python -m bench data metrics/bench.json docs/speed.md $(PART)

soak: setup  ## injects faults by a seed, and counts what survives: MINUTES=60 SEED=0 KINDS=kills,stores,...; writes metrics/faults.json, docs/faults.md
	@PYTHONPATH=.:src python -m tests.soak "$${SEED:-0}" "$${MINUTES:-60}" metrics/faults.json docs/faults.md $(KINDS)

stress: setup  ## a full queue, a store of 10,000 runs, and the served model, measured; writes metrics/load.json
	@PYTHONPATH=src:. python -m bench.load metrics/load.json

data/train-images-idx3-ubyte: | setup
	dvc repro download
