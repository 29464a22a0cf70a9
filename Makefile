# Every target does its own set-up: the first one called builds .venv, the next ones find it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart docstrings test chaos sweeps test-fast lint type bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo "  PYTHON=/path/to/python3.12 builds .venv with another Python (3.11 or newer)."

# Set-up is stamped, so it is done once, and again when what it depends on changes; what running needs and what
# developing needs on top of it have a stamp each. torch goes first: it is by far the largest, and a failure there should
# be seen before anything else has been fetched.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) not found. Install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); manta needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "error: $(PYTHON) -m venv failed. On Debian and Ubuntu: apt install python3-venv; then run make again." >&2; rm -rf .venv; exit 1; }
	@$(PYTHON) .ci/install.py $(BIN)/pip '-c constraints.txt torch==2.13.0' '-c constraints.txt -e .'
	@touch $@

$(READY_DEV): $(READY)
	@$(PYTHON) .ci/install.py $(BIN)/pip '-c constraints.txt -e .[dev]'
	@touch $@

quickstart: $(READY) ## from nothing to a trained, evaluated model on this machine
	$(BIN)/manta quickstart

docstrings: $(READY) ## a second quickstart: an encoder-decoder that reads functions and writes their summaries
	$(BIN)/manta quickstart docstrings

test: $(READY_DEV) ## all tests but chaos and sweeps, those that start Ray and the local S3 server included
	$(BIN)/pytest -m 'not chaos and not sweep'

chaos: $(READY_DEV) ## real faults done to a run on a local cluster of real nodes: it must end as the one left alone
	$(BIN)/pytest -m chaos

sweeps: $(READY_DEV) ## sweeps that really run, killed ones and ones on clusters too small for them among them
	$(BIN)/pytest -m sweep

test-fast: $(READY_DEV) ## the tests that need neither cluster nor server
	$(BIN)/pytest

lint: $(READY_DEV) ## style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY_DEV) ## types, strictly
	$(BIN)/mypy

bench: $(READY_DEV) ## the benchmarks, one after the other; results as JSON
	@for benchmark in bench/bench_*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark" || exit 1; done

clean: ## remove caches and builds; .venv and .manta (your runs) stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
