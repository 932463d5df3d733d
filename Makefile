# make demo: the whole loop on a fresh machine. make test: all tests. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
export PYTHONUNBUFFERED := 1

.PHONY: help install setup demo up test test-fast test-slow lint format bench bench-gpu messages clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.installed: pyproject.toml package-lock.json scripts/setup.sh
	@PYTHON=$(PYTHON) scripts/setup.sh

.venv/.installed-dev: .venv/.installed
	@scripts/setup.sh dev

.venv/.installed-bench: .venv/.installed-dev
	@scripts/setup.sh bench

install: .venv/.installed ## install what the platform needs into .venv and node_modules
	@$(BIN)/python scripts/compile_messages.py

setup: install .venv/.installed-dev ## install that and what developers need: test tools, linters

demo: install ## run one whole feedback round on the small world, then stay up (ARGS=--exit ends, ARGS="--exit --seed 2")
	@$(BIN)/python manage.py demo $(ARGS)

up: install ## start the platform at http://127.0.0.1:8000
	@$(BIN)/python manage.py up $(ARGS)

test: setup ## all tests: SQLite, PostgreSQL, real Valkey and workers, Chromium
	@scripts/test.sh

test-fast: setup ## the tests that start no services and no browser
	@$(BIN)/python -m pytest -q -m "not services and not browser and not slow" $(ARGS)

test-slow: setup ## the long ones
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: setup ## ruff, mypy, import contracts, migrations
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@BUCLE_HOME=$$(mktemp -d) $(BIN)/python manage.py makemigrations --check --dry-run

format: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

messages: setup ## collect translatable texts into locale/ (needs gettext)
	@cd $(CURDIR) && $(BIN)/python manage.py makemessages -l es --no-obsolete --ignore node_modules --ignore .venv --ignore var

bench: setup .venv/.installed-bench ## measure speed beside the peers and write docs/results.md (ARGS="training generation" for some)
	@$(BIN)/python -m bench $(ARGS)

bench-gpu: setup .venv/.installed-bench ## the same on a GPU: pretraining, decoding, PPO, DDP (ARGS=--dry tries every path on a CPU)
	@$(BIN)/python -m bench.gpu $(ARGS)

clean: ## remove what was installed; var/ (your data) stays
	rm -rf .venv node_modules
