# `make` alone prints what there is. Every target does the set-up it needs by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Shape annotations are executed in tests; one thread a worker, since the workers share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --jaxtyping-packages=videolm,videolm_kernels,beartype.beartype
# The compiler that kernels are checked with ahead of time, apart from the one that torch brings: its version is
# part of what is checked. Triton exists for Linux.
TRITON := .triton-3.6.0
HAS_TRITON := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-aot test-slow test-gpu hostile bench bench-kernels bench-towers lint format types imports check clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## virtual environment .venv, dependencies, editable install

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "videolm needs Python 3.11 or newer; $(PYTHON) is older. Use: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## render a small world, index it, ask it, show what was found
	$(BIN)/videolm demo

test: $(READY) $(if $(HAS_TRITON),test-aot) ## the tests, without the slow and the GPU ones
	$(PYTEST) -n 2

test-aot: $(READY) $(TRITON)/.ready ## every kernel compiled for sm_80 and sm_90: tensor cores, wide loads, no spills
	TRITON_INTERPRET=0 PYTHONPATH=$(TRITON) $(PYTEST) -n 2 tests/aot

$(TRITON)/.ready:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(TRITON) triton==3.6.0
	@touch $@

test-slow: $(READY) ## the slow tests
	$(PYTEST) -n 2 -m 'slow and not gpu'

test-gpu: $(READY) ## the tests that need a CUDA device
	VIDEOLM_REQUIRE_GPU=1 $(PYTEST) -m gpu

hostile: $(READY) ## 2,700 hostile files through every decoder: a table, and an error on any violation (5 minutes; needs ffmpeg)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile.run

bench: $(READY) ## file to embedding beside the usual way: make bench SOURCES=FOLDER_OF_NATURAL_VIDEOS
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python tools/bench/pipeline.py compare $(SOURCES) --csv tools/bench/results/pipeline.csv

# Small pages, and memory that is given back and asked for again, cost a tower up to a tenth, and not in every run.
QUIET_MEMORY := THP_MEM_ALLOC_ENABLE=1 MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=1073741824

bench-kernels: $(READY) ## every op beside its alternatives, on the GPU where there is one
	$(QUIET_MEMORY) $(BIN)/python tools/bench/kernels.py run

bench-towers: $(READY) ## whole towers, with and without token merging, as they are and compiled
	for dtype in float32 bfloat16; do \
		$(QUIET_MEMORY) $(BIN)/python tools/bench/towers.py --dtype $$dtype --variant compile $(foreach r,4 8 16, \
			--variant tome:r=$(r) --variant compile,tome:r=$(r)) || exit; \
	done

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
	rm -rf $(VENV) $(TRITON) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
