PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
READY := $(VENV)/.ready

.PHONY: docs setup test lint types demo demo-ui bench build requirements test-quick test-conformance test-long coverage test-compose test-chaos clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

test: setup  ## all tests that need no root service
	$(BIN)/python -m pytest tests -n 4 --dist loadfile --no-loadscope-reorder -m "not long and not conformance"

test-conformance: setup  ## the conformance suite of every platform that needs no root service
	$(BIN)/python -m pytest tests/platforms -n 4 --dist loadfile -m "conformance and not long"

test-long: setup  ## what takes minutes, or a service that only root can start: release control and the UI on a real Airflow, a Docker Engine, twelve kinds
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder -m long

test-quick: setup  ## without the real scheduler
	$(BIN)/python -m pytest tests -n 2 -m "not system and not long and not conformance"

test-compose: setup  ## docker-compose.yaml for real, where a Docker Engine can run
	$(BIN)/python -m tests.system.compose

test-chaos: setup  ## kills on a real Airflow, PostgreSQL, Redis, Celery: all of it takes 40 minutes; ARGS="--short" a few
	$(BIN)/python -m tests.chaos $(ARGS)

lint: setup  ## style, and that imports only go down
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

coverage: setup  ## what decides: at least 95 % of branches
	$(BIN)/python -m pytest tests/ground tests/catalog tests/release -q --cov=airflow_multideploy.catalog --cov=airflow_multideploy.release --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=95

types: setup
	$(BIN)/mypy

demo: setup  ## four releases on a real Airflow against the sandbox
	@$(BIN)/airflow multideploy demo

demo-ui: setup  ## the same, left running with the UI
	@$(BIN)/airflow multideploy demo --ui

bench: setup
	$(BIN)/python bench/parse.py
	$(BIN)/python bench/overhead.py

docs: setup  ## the pages of the platforms, written from their code
	$(BIN)/airflow multideploy platforms --docs docs/platforms

build: setup
	$(BIN)/python -m build --no-isolation

requirements: setup  ## compile requirements.txt anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.txt

clean:
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache
