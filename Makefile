# `make` alone prints what there is. Every target does the set-up it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Shape annotations are executed in tests; one thread a worker, since the workers share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --jaxtyping-packages=videolm,videolm_kernels,beartype.beartype

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu hostile bench lint format types imports check clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## virtual environment .venv, dependencies, editable install

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "videolm needs Python 3.11 or newer; $(PYTHON) is older. Use: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## render a small world, index it, ask it, show what was found
	$(BIN)/videolm demo

test: $(READY) ## the tests, without the slow and the GPU ones
	$(PYTEST) -n 2

test-slow: $(READY) ## the slow tests
	$(PYTEST) -n 2 -m 'slow and not gpu'

test-gpu: $(READY) ## the tests that need a CUDA device
	VIDEOLM_REQUIRE_GPU=1 $(PYTEST) -m gpu

hostile: $(READY) ## 2,700 hostile files through every decoder: a table, and an error on any violation (5 minutes; needs ffmpeg)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.run

bench: $(READY) ## file to embedding beside the usual way: make bench SOURCES=FOLDER_OF_NATURAL_VIDEOS
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tools/bench/pipeline.py compare $(SOURCES) --csv tools/bench/results/pipeline.csv

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy --strict on both packages
	$(BIN)/mypy

imports: $(READY) ## the floors: which room may import which
	$(BIN)/lint-imports

check: lint types imports test ## everything that has to be green

clean: ## remove the virtual environment, caches and what the demo made
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
