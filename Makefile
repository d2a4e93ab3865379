# Everything runs from .venv, which is built from requirements.lock; nothing else is needed but Python, make and git.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo dev test lint format typecheck check lock clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: .venv/installed  ## Build .venv from requirements.lock

# The stamp is written last, so an interrupted installation is begun anew.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("customer-jobs needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: install  ## Run the main job end to end: no servers, no Stripe key
	@$(BIN)/customer-jobs demo

dev: install  ## Run everything on this machine until Ctrl-C
	@$(BIN)/customer-jobs dev

test: install  ## Run the tests
	$(BIN)/python -m pytest

lint: install  ## Check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install  ## Put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: install  ## Check the types
	$(BIN)/mypy

check: lint typecheck test  ## All of the above

lock: install  ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-emit-index-url --no-header \
		--upgrade --quiet -o requirements.lock

clean:  ## Remove the virtual environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
