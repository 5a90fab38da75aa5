# make run and make test work on a machine with Python 3.11+ and make; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test faults check client coverage bench soak install psql lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

run: $(VENV)/run ## serve on http://127.0.0.1:8080 with an embedded PostgreSQL and demo data
	@exec $(BIN)/python -m service serve

test: $(VENV)/dev ## run all tests, on a PostgreSQL of their own, or on a server: DATABASE_URL=postgresql://...
	TEST_DATABASE_URL='$(DATABASE_URL)' $(BIN)/python -m pytest

faults: $(VENV)/dev ## run the tests that take long: locks, overload, floods, servers that are away
	$(BIN)/python -m pytest -n 0 -m faults

check: $(VENV)/dev ## lint, format, types, which module may import which, and deploy/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes.yaml

client: client/node_modules/made ## types, tests and openapi.yaml for the JavaScript client (needs Node 20.19+)
	cd client && npm run --silent check && npm test

coverage: $(VENV)/dev ## run all tests, and list the lines that none of them runs
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(VENV)/dev ## measure, and write bench/results.md and bench/results.svg (needs wrk); or only, by workers: WORKERS=1,2,4,8
	$(BIN)/python -m bench $(if $(WORKERS),--only workers --workers $(WORKERS) --output test-results)

soak: $(VENV)/dev ## an hour (MINUTES=60) of good, bad and broken-off requests, and what is left
	$(BIN)/python -m bench.soak --minutes $(or $(MINUTES),60)

install: $(VENV)/dev ## everything for development, into .venv

psql: $(VENV)/run ## open psql on the embedded database while it runs
	@exec $(BIN)/python -m service.demo.postgres

lock: $(VENV)/dev ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
	  --python-version 3.11 --extra embedded pyproject.toml -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
	  --python-version 3.11 -c requirements/run.txt pyproject.toml -o requirements/production.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
	  --python-version 3.11 --extra dev -c requirements/run.txt pyproject.toml -o requirements/dev.txt

clean: ## remove .venv, the embedded database and what tools leave behind
	@pid=$$(sed -n 1p .data/postgres/postmaster.pid 2>/dev/null); test -n "$$pid" || exit 0; \
	  if kill -0 "$$pid" 2>/dev/null || ps -p "$$pid" >/dev/null 2>&1; then \
	    echo "make clean: PostgreSQL runs in .data, as process $$pid; stop it first:" \
	      "Ctrl-C where make run is, or: kill -INT $$pid" >&2; exit 1; fi
	rm -rf .venv .data dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage* \
	  .hypothesis test-results client/node_modules client/.generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

client/node_modules/made: client/package-lock.json
	cd client && npm ci --no-audit --no-fund --silent
	@touch $@

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/made requirements/run.txt
	@echo "Installing into $(VENV), once ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	@touch $@

$(VENV)/dev: $(VENV)/made requirements/dev.txt
	@echo "Installing everything for development into $(VENV), once ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@
