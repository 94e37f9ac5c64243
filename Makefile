# make demo | test | bench | gpu-check | lint; each sets up what it needs, in .venv. PYTHON=python3.12 make demo chooses another.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo reproduce-table-4-6 test bench bench-scale gpu-check lint schema

help:  ## these targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 8

setup: .venv/.ready  ## make .venv with the exact versions of requirements.lock

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## the whole chain on handwritten digits, a few minutes on two cores
	snakemake --cores all --config study=demo
	@echo "report: $(CURDIR)/results/report/demo/index.html"

STUDY ?= table_4_6
reproduce-table-4-6: setup  ## sixteen trainings of 15 M parameters and their FGSM, for one GPU; STUDY=table_4_6_jpeg
	snakemake --cores all --config study=$(STUDY)
	@echo "report: $(CURDIR)/results/report/$(STUDY)/index.html"

test: setup  ## every test
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

bench: setup  ## how fast it is, in ratios: results/bench/index.html; then what a study of 10,000 runs costs
	$(MAKE) --keep-going bench-start bench-floor bench-parity bench-speed bench-growth bench-scale

bench-%: setup
	sandglass bench $*

bench-scale: setup
	$(BIN)/python benchmarks/scale.py

gpu-check: setup  ## on a GPU: a step recorded as a CUDA graph against the usual one, correct and how fast
	$(BIN)/python benchmarks/gpu_check.py

lint: setup  ## formatter, linter, types, workflow
	ruff format --check src tests benchmarks
	ruff check src tests benchmarks
	mypy
	snakemake --lint

schema: setup  ## rewrite workflow/schemas/params.schema.json
	$(BIN)/python -c 'import json; from sandglass.config import Params; print(json.dumps(Params.model_json_schema(), indent=1))' > workflow/schemas/params.schema.json
