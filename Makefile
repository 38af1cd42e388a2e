# `make demo` and `make test` need nothing but Python 3.11+ and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Files of tests side by side: those that start Ray wait more than they compute. With three, two cores start it too late.
PYTEST := $(BIN)/python -m pytest tests --dist loadfile --numprocesses 2

.PHONY: help setup demo test check fix test-slow smoke clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

setup: $(STAMP)  ## make .venv and install the project with its tools

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable . --group dev
	@touch $(STAMP)

demo: $(STAMP)  ## run the main job on the embedded model; prints the report's path last
	$(BIN)/polypersona run jobs/demo.yaml

test: $(STAMP)  ## the test suite, under ten minutes on two cores
	$(PYTEST)

check: $(STAMP)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP)  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-slow: $(STAMP)  ## the slow and browser tests
	$(PYTEST) -m "slow or browser"

smoke: $(STAMP)  ## generation, evaluation and report with the fake engine, in seconds
	$(BIN)/polypersona run jobs/smoke.yaml --from generate --to report

clean:  ## remove the environment, caches and runs of the shipped recipes
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache runs/demo runs/smoke
