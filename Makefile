# make run: the main job. make test: the tests. make check: style, types, import direction.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run test test-all check clean

$(VENV)/.run: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run
	@exec $(BIN)/sigma9 run

test: $(VENV)/.dev
	@sh tests/programs.sh
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.dev
	@sh tests/programs.sh
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy sigma9_core plugins/sigma9_plugins integrations/sigma9_integrations tests
	$(BIN)/python -m pytest -q tests/core/test_architecture.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
