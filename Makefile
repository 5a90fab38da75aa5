# make run and make test work on a machine with Python 3.11+ and make; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run test check bench install psql lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

run: .venv/run ## serve on http://127.0.0.1:8080 with an embedded PostgreSQL and demo data
	@exec $(BIN)/python -m service serve

test: .venv/dev ## run all tests, against a PostgreSQL of their own
	$(BIN)/python -m pytest

check: .venv/dev ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev ## measure, and write bench/results.md and bench/results.svg (needs wrk)
	$(BIN)/python -m bench

install: .venv/dev ## everything for development, into .venv

psql: .venv/run ## open psql on the embedded database while it runs
	@exec $(BIN)/python -m service.embedded

lock: .venv/dev ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
	  --python-version 3.11 --extra embedded pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
	  --python-version 3.11 --extra dev -c requirements/run.txt pyproject.toml -o requirements/dev.txt

clean: ## remove .venv, the embedded database and what tools leave behind
	rm -rf .venv .data dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis test-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/made requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	@touch $@

.venv/dev: .venv/made requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@
