# make run: the main job. make test: the tests. make check: style, types, import direction.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ONCE   := making the environment ($(VENV)) and installing: under a minute, once

.PHONY: run test test-all check bench clean

$(VENV)/.run: pyproject.toml
	@echo "$(ONCE)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml
	@echo "$(ONCE)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run

# Make dies of a Ctrl-C that it hears, however orderly the server ends. So on a terminal the server is the foreground
# job of its own (set -m), which alone hears Ctrl-C, and make passes its exit code on. Nothing could bring such a job
# back from Ctrl-Z, which is therefore ignored. Elsewhere (no terminal, or in the background) it is plainly run.
run: $(VENV)/.run
	@case "$$(ps -o stat= -p $$$$ 2>/dev/null)" in *+*) trap '' TSTP; set -m; $(BIN)/sigma9 run ;; *) exec $(BIN)/sigma9 run ;; esac

# Three at a time on two cores: they wait for brokers, timers and disks for more than half of their time.
test: $(VENV)/.dev
	@sh tests/programs.sh
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(VENV)/.dev
	@sh tests/programs.sh
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy sigma9_core plugins/sigma9_plugins integrations/sigma9_integrations tests
	$(BIN)/python -m pytest -q tests/core/test_architecture.py

# What the promises of speed are measured by: ratios in one run where a ratio is promised. Minutes on a quiet machine.
bench: $(VENV)/.dev
	$(BIN)/python tests/bench_gate.py
	$(BIN)/python tests/bench_journal.py
	$(BIN)/python tests/bench_kill.py
	$(BIN)/python tests/bench_feeds.py
	$(BIN)/python tests/bench_mqtt.py
	$(BIN)/python tests/bench_ibkr.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
