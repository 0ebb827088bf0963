# Everything is set up by the targets themselves: python3 (3.11 or newer) and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
# A target that exists only once the environment is whole; rebuilt when what it was made from changes.
READY := $(VENV)/.ready

.PHONY: demo test chaos bench lint clean

demo: $(READY)
	@$(BIN)/scopemill demo

test: $(READY)-test
	@$(BIN)/python -m pytest

chaos: $(READY)-test
	@$(BIN)/python tests/chaos/run.py

bench: $(READY)-test
	@$(BIN)/python tests/bench/run.py

lint: $(READY)-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV), once: some minutes"
	@$(PIP) -e .
	@touch $@

$(READY)-test: $(READY)
	@echo "adding what the tests need, once"
	@$(PIP) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) demo-bucket
