.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check reference format clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with everything (PyTorch first, so that no CUDA packages are pulled in)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[local,dev]'
	touch $(STAMP)

demo: setup ## Run the whole pipeline against the emulator: no key, no network
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: setup ## Run the tests, a file to a process at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

reference: setup ## Write docs/reference.md from the program
	$(BIN)/python scripts/write_reference.py

check: setup ## Lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --verbose

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove everything that was made
	rm -rf $(VENV) .cache demo-run* dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
