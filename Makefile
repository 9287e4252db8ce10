# Everything runs in .venv, which the first target that needs it makes; no target needs root.
# On a machine without: make PYTHON=/path/to/python3.12 <target>
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input --quiet install -c requirements.lock
PORT ?= 8080
# A file's tests share their peers, so they stay on one worker; half of a worker's time goes into waiting for those.
PYTEST_FLAGS ?= -n 3 --dist loadfile --no-loadscope-reorder
# Debian keeps Orthanc in /usr/sbin, which is not on every user's PATH.
export PATH := $(PATH):/usr/sbin:/usr/local/sbin
# Tests start the gateway many times over: each start would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint format fuzz interop bench bench-quick soak lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## starts the gateway over seven small national nodes; PORT=8081 for another port
	@exec $(PY) -m gateway demo --port $(PORT)

test: $(VENV)/.dev ## proves everything, against real peers too (installs them where it may); TESTS=tests/wire for a part
	@.ci/peers
	@$(PY) -m pytest $(PYTEST_FLAGS) $(TESTS)

lint: $(VENV)/.dev ## style, types, layers and the shipped mappings
	@$(PY) -m pytest -q tests/packaging/test_house.py

format: $(VENV)/.dev ## puts the code into shape
	@$(PY) -m ruff check --quiet --fix-only . && $(PY) -m ruff format .

fuzz: $(VENV)/.dev ## 200,000 generated requests, none of which may be a fault, a hang or a leak; FUZZ=20000 SEED=2 for others
	@$(PY) -m tests.fuzz.run --count $(or $(FUZZ),200000) --seed $(or $(SEED),1)

interop: $(VENV)/.dev ## OHIF in a headless browser and the clients of npm on the demo (needs node, npm and chromium)
	@$(PY) -m tests.viewer.run

bench: $(VENV)/.dev ## measured beside Orthanc and others, bars beside the ratios; ONLY=lookups,fanout for a part
	@.ci/peers
	@$(PY) tests/bench/run.py --only "$(ONLY)"

bench-quick: $(VENV)/.dev ## the same with one round of each case; ONLY=streaming for a part
	@.ci/peers
	@$(PY) tests/bench/run.py --quick --only "$(ONLY)"

soak: $(VENV)/.dev ## 20 minutes of load, faults and leaving callers; SOAK_MINUTES=2 for less
	@$(PY) tests/soak/run.py

lock: ## writes requirements.lock anew, from an environment of nothing but the dependencies
	@.ci/lock

clean: ## removes the environment and everything generated
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says what is installed, so that a second run costs nothing.
$(VENV)/.made: .ci/venv
	@.ci/venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml requirements.lock
	@echo "Installing what the gateway needs into $(VENV) (once; about a minute)" >&2
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation -e ".[pixels]"
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what the tests need into $(VENV) (once)" >&2
	@$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@
