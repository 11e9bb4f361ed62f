# The only task vocabulary: people, hooks and CI call these targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# dvc.yaml calls `align`, so the environment's commands come first on the path.
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# More arguments for `align run` (make demo), such as ARGS="--set pretrain.seed=1", or for pytest (make test-full)
ARGS ?=
# A worker per core, four at most, each with whole files: the longest, tests/e2e and tests/integration, come first.
WORKERS := -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.PHONY: help demo test test-full bench bench-train bench-data check format up down lock sample clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "align needs Python >= 3.11; say which: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) from requirements.lock (some minutes, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

demo: $(STAMP) ## the whole pipeline on data/sample, with a summary at the end
	@$(RUN) align run --name demo $(ARGS)

test: $(STAMP) ## what pip installs is enough
	@$(RUN) pytest $(WORKERS) -m "not full"

test-full: $(STAMP) ## adds the tests that need more than pip installs
	@$(RUN) pytest $(WORKERS) $(ARGS)

bench: bench-train bench-data ## ratios measured side by side in one run

bench-train: $(STAMP) ## the training half against its peers, which get an environment of their own; half an hour
	@$(RUN) python -m benchmarks

bench-data: $(STAMP) ## the data half against its peers, which get an environment of their own; half an hour
	@$(RUN) python -m benchmarks.data

check: $(STAMP) ## lint, types, layers, file lengths
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports --no-cache
	@! git ls-files -co --exclude-standard '*.py' | xargs -d '\n' wc -l | awk '$$2 != "total" && $$1 > 350 {print "over 350 lines: " $$2 " (" $$1 ")"; found = 1} END {exit !found}'

format: $(STAMP) ## format and fix what can be fixed
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

up: $(STAMP) ## Prefect server and worker, MLflow, on loopback; the flows deployed
	@$(RUN) python infra/local.py up

down: $(STAMP) ## stop what `make up` started
	@$(RUN) python infra/local.py down

lock: ## resolve requirements.lock again from pyproject.toml
	@$(PYTHON) -m venv .align/lock && .align/lock/bin/pip install --quiet uv
	@.align/lock/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-header --no-annotate --quiet -o .align/lock/all.txt
	@{ echo "# Made by 'make lock' from pyproject.toml. torch and torchvision are ranges: CPU and CUDA builds both fit."; \
	   echo "torch>=2.9"; echo "torchvision>=0.24"; \
	   grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' .align/lock/all.txt; } > requirements.lock

sample: $(STAMP) ## rebuild data/sample from its source packages
	@$(RUN) python data/sample/build

clean: ## remove what runs made here (never the data/sample, never another folder)
	@rm -rf .align runtime checkpoints
