# Everything runs from .venv, which is built from requirements.lock; nothing else is needed but Python, make and git.
PYTHON ?= python3
# Many tests wait for programs that they started: three at a time keep two cores busy.
TEST_PROCESSES ?= 3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo dev test slow short-chaos chaos lint format typecheck check ci lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed  ## Build .venv from requirements.lock, unless it is there

# The stamp goes first and comes back last: an installation that was interrupted is begun anew, in an empty .venv.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("error: customer-jobs needs Python 3.11 or newer, this is %d.%d; choose another: make install PYTHON=python3.12" % v[:2])'
	@echo "installing into .venv; this takes a minute and happens once"
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	@rm -f $@
	@$(PIP) install --quiet --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: install  ## Run the main job end to end: no servers, no Stripe key
	@$(BIN)/customer-jobs demo

dev: install  ## Run everything on this machine until Ctrl-C
	@$(BIN)/customer-jobs dev

test: install  ## Run the tests that take no more than a few seconds each
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --ignore tests/chaos -m "not slow"

slow: install  ## Run the tests that start many programs or wait for long
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --ignore tests/chaos -m slow

short-chaos: install  ## Do real harm, point by point; three minutes
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile tests/chaos

# Two hundred examples take three minutes, with one kind of database on each of two cores.
chaos: install  ## Do real harm to thousands of jobs; a quarter of an hour
	CHAOS_EXAMPLES=200 $(BIN)/python -m pytest --numprocesses 2 tests/chaos/test_life_cycle.py
	CHAOS=long $(BIN)/python -m pytest tests/chaos/test_crash_points.py
	$(BIN)/python -m tests.chaos.soak
	$(BIN)/python -m tests.chaos.soak --sqlite --jobs 500 --rounds 2 --workers 2
	$(BIN)/python -m tests.chaos.soak --spare-workers --jobs 500 --rounds 2 --workers 1

lint: install  ## Check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install  ## Put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: install  ## Check the types
	$(BIN)/mypy

check: lint typecheck test  ## Lint, typecheck and test

ci:  ## Check all that must hold before a change is merged
	@bash .ci/run

# Without the indexes that this machine's uv may know besides: everybody gets the same lock.
lock: install  ## Write requirements.lock anew from pyproject.toml
	env -u UV_INDEX -u UV_INDEX_URL -u UV_DEFAULT_INDEX -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
		$(BIN)/uv --no-config pip compile pyproject.toml --all-extras --universal --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --upgrade --quiet -o requirements.lock

clean:  ## Remove the virtual environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
