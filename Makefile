# pgherald: everything a person does with a checkout. `make` alone lists it.
#
# The virtual environment holds what requirements*.lock name, by hash, and nothing else. Stamp files in it say what is
# installed, so that a target whose lock has not changed starts at once. Pass pytest's arguments in ARGS:
#   make test ARGS="tests/unit -k spool"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Tests at once: most of them wait for servers most of the time.
JOBS ?= 4
# The newest of these that is there and new enough; `make PYTHON=/path/to/python ...` overrules it.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

##@ Use it
.PHONY: help demo test test-quick fault bench check fmt expected lock clean system
.NOTPARALLEL:

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## a Postgres, an app, an FCM and the daemon in one command: watch rows become pushes
	@$(BIN)/pgherald demo $(ARGS)

##@ Test it
test: system $(VENV)/.dev ## every test, on PostgreSQL 18 (embedded) and 15 (Debian's, with pg_cron)
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-quick: $(VENV)/.dev ## the tests that need no database and no patience
	@$(BIN)/python -m pytest tests/unit -m "not slow" $(ARGS)

fault: system $(VENV)/.dev ## crashes, partitions, full disks: what must hold when things break
	@FAULT=full $(BIN)/python -m pytest tests/fault --timeout=900 $(ARGS)

# A file or a package of tests/bench that can be run; each prints a table and writes bench-results/NAME.json.
BENCH_FILES := $(shell grep -ls __main__ tests/bench/*.py tests/bench/*/__main__.py)
BENCHES := $(sort $(patsubst tests/bench/%.py,bench-%,$(patsubst %/__main__.py,%.py,$(BENCH_FILES))))
bench: system $(VENV)/.dev ## what it costs, all of it (an hour); alone: make bench-drain, bench-peers, ...
	@$(MAKE) --keep-going $(BENCHES)
bench-%: system $(VENV)/.dev
	@printf '\n## %s\n\n' '$*'
	@$(BIN)/python -m tests.bench.$* $(ARGS)

check: system $(VENV)/.dev ## format, lint, types, layers, SQL, Prometheus rules, systemd units, dependencies
	@PATH="$(abspath $(BIN)):$$PATH" bash tests/check.sh

##@ Change it
fmt: $(VENV)/.dev ## format the Python sources
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix-only .

expected: $(VENV)/.dev ## write tests/expected/ anew from what the migrations now make
	@$(BIN)/python -m pytest tests/db/test_expected_schema.py tests/db/test_roles.py -k expected --update-expected -p no:randomly $(ARGS)

# --custom-compile-command keeps the address of the package index, and anything else of this machine, out of the locks.
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --generate-hashes --no-emit-index-url \
  --no-emit-find-links --custom-compile-command "make lock" --extra demo --group build
lock: $(VENV)/.dev ## resolve the dependencies anew (ARGS=--upgrade for newer ones) and write both locks
	@$(LOCK) --group dev --output-file requirements.lock $(ARGS)
	@$(LOCK) --constraint requirements.lock --output-file requirements-demo.lock

clean: ## remove what make and the tools made
	@rm -rf $(VENV) .peers dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find daemon tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in three steps: an interpreter with pip, the demo's packages, the developers' packages.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "pgherald needs Python 3.11 or newer, and there is none in PATH;" \
	  "install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "making $(VENV) with $$("$(PYTHON)" --version)" >&2
	@"$(PYTHON)" -m venv --clear $(VENV) >$(VENV).log 2>&1 || { cat $(VENV).log >&2; rm -rf $(VENV) $(VENV).log; echo \
	  "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt-get install python3-venv)" >&2; \
	  exit 2; }
	@rm -f $(VENV).log

# What the tests use besides Python packages: on Debian as root it is installed, elsewhere it is named.
system:
	@bash tests/install-debian.sh

$(VENV)/.demo: requirements-demo.lock pyproject.toml | $(BIN)/python
	@echo "installing what requirements-demo.lock names into $(VENV)" >&2
	@$(PIP) install --require-hashes -r requirements-demo.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing what requirements.lock names into $(VENV)" >&2
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(VENV)/.demo $@
