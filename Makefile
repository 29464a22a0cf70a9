# Every target does its own set-up: the first one called builds .venv, and later ones reuse it.
PYTHON ?= python3
EXAMPLES ?= 1000
BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev


# Every process of a run would compile all modules anew: a second of a core for each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart docstrings test chaos sweeps soak fuzz test-fast lint type bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo "  PYTHON=/path/to/python3.12 builds .venv with another Python (3.11 or newer)."

# Stamp files record the set-up, so it is repeated only when its inputs change; there is one for the runtime dependencies
# and one for the development tools. torch is installed first: it is by far the largest package, and its failure should be
# seen before anything else is downloaded.
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

quickstart: $(READY) ## train and evaluate a small model on this machine, starting from nothing
	$(BIN)/manta quickstart

docstrings: $(READY) ## the second quickstart: an encoder-decoder that reads functions and writes their summaries
	$(BIN)/manta quickstart docstrings

test: $(READY_DEV) ## run all tests except chaos and sweeps; some start Ray and a local S3 server
	$(BIN)/pytest --durations=15 -m 'not ray and not s3 and not chaos and not sweep and not soak'
	$(BIN)/pytest --durations=25 -n 2 --dist loadfile -m '(ray or s3) and not chaos and not sweep and not soak'

chaos: $(READY_DEV) ## inject real faults into a run on a local cluster: its result must equal that of an undisturbed run
	$(BIN)/pytest --durations=15 -n 0 -m 'chaos and not soak' tests/end_to_end

sweeps: $(READY_DEV) ## run the tests of whole sweeps, including killed ones and ones on clusters that are too small
	$(BIN)/pytest --durations=15 -n 0 -m 'sweep and not soak' tests/end_to_end

soak: $(READY_DEV) ## run the long tests that CI leaves out, among them every fault in every phase of a run; before a release
	$(BIN)/pytest -n 0 -m soak

fuzz: $(READY_DEV) ## draw damaged and hostile inputs for as long as it takes: make fuzz EXAMPLES=100000
	MANTA_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -m "" tests/fuzz

test-fast: $(READY_DEV) ## run the tests that need neither cluster nor server
	$(BIN)/pytest

lint: $(READY_DEV) ## check style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY_DEV) ## check types, strictly
	$(BIN)/mypy

bench: $(READY_DEV) ## run the benchmarks, one after the other; results as JSON
	@for benchmark in bench/bench_*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark" || exit 1; done

clean: ## remove caches and builds; .venv and .manta (your runs) stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
