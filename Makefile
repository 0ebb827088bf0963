# Everything is set up by the targets themselves: python3 (3.11 or newer) and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
# A target that exists only once the environment is whole; rebuilt when what it was made from changes.
READY := $(VENV)/.ready
# sae-lens needs TransformerLens 3 and the mill needs 4, so this environment holds our core, sae-lens and its peers.
INTEROP := .venv-interop

.PHONY: demo test chaos test-interop bench bench-peers lint clean

demo: $(READY)
	@$(BIN)/scopemill demo

test: $(READY)-test
	@$(BIN)/python -m pytest

chaos: $(READY)-test
	@$(BIN)/python tests/chaos/run.py

test-interop: $(READY)-test $(INTEROP)/.ready
	@$(BIN)/python tests/interop/run.py $(INTEROP)/bin/python

bench: $(READY)-test
	@$(BIN)/python tests/bench/run.py

bench-peers: $(READY)-test $(INTEROP)/.ready
	@$(BIN)/python tests/bench/peers/run.py $(INTEROP)/bin/python

lint: $(READY)-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV), once: some minutes"
	@$(PIP) -e '.[mill]'
	@touch $@

$(READY)-test: $(READY)
	@echo "adding what the tests need, once"
	@$(PIP) -e '.[test]'
	@touch $@

# torchvision, which one of them brings along, is of another build than the CPU's torch: whatever finds it fails to import.
$(INTEROP)/.ready: tests/interop/requirements.txt pyproject.toml
	@test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	@echo "setting up $(INTEROP), once: some minutes"
	@$(INTEROP)/bin/pip install -qq --disable-pip-version-check -r tests/interop/requirements.txt -e . || \
		{ echo "sae-lens and its peers could not be installed: that takes the network, once"; exit 1; }
	@$(INTEROP)/bin/pip uninstall -qqy torchvision
	@touch $@

clean:
	rm -rf $(VENV) $(INTEROP) demo-bucket
