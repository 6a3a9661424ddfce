# One command per verb. Needs Python 3.11 or later, make and a package index; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
FOLDERS := flows serving tasks warehouse infra
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint format types imports wheel check bench bench-all docs lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"Nearline needs Python 3.11 or later; {sys.executable} is {v.major}.{v.minor}. Name another one: make PYTHON=python3.12 ...")'
	@echo "Making .venv ..."
	@$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Nearline and what it needs into .venv (the first time: one to five minutes) ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.dev: .venv/.runtime
	@echo "Installing the tools for tests and checks ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: .venv/.dev ## Install everything into .venv, and fetch the model that tests and demo use
	@$(BIN)/nearline fetch

demo: .venv/.runtime ## Real data to published, explained recommendations, in one go
	@$(BIN)/nearline demo

up: .venv/.runtime ## Start the Prefect server with its UI, the schedules and a worker
	@$(BIN)/nearline up

test: setup ## Run all tests
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

lint: .venv/.dev ## Style, bug patterns, docstrings
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/.dev ## Rewrite the code in its style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: .venv/.dev ## Check types, strictly
	@$(BIN)/mypy

imports: .venv/.dev ## Check the direction of imports
	@$(BIN)/lint-imports

wheel: .venv/.dev ## Build the wheel and import it in an empty environment
	@infra/docker/check_wheel.sh $(BIN)/python

check: lint types imports wheel test ## Everything that CI runs

bench: .venv/.dev ## How seconds and memory of every stage grow (15 minutes); the last line is one JSON object
	@$(BIN)/python -m benchmarks.growth --json $(ARGS)

bench-all: .venv/.dev ## Run every benchmark (after make demo); each prints one JSON object as its last line
	@for name in $$(ls benchmarks/*.py | xargs -n1 basename | sed 's/\.py$$//' | grep -v __init__); do \
	  echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name --json || exit 1; done

docs: .venv/.dev ## Write the generated pages: data dictionary, settings
	@$(BIN)/python -m warehouse.dictionary && $(BIN)/python -m infra.settings_docs

lock: .venv/.dev ## Write constraints.txt from what is installed in .venv
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v ' @ ' > constraints.txt

clean: ## Remove .venv, state and build output
	rm -rf .venv var dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis
