# Everything here sets itself up: the first target that needs it makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer
DEMO := demo-out

.PHONY: help demo demo-smollm2 test lint slow bench precision torture docs clean

help:
	@echo "make demo           train three small experts by reinforcement learning, sweep, score, report"
	@echo "make demo-smollm2   the same with SmolLM2-135M-Instruct, a published model"
	@echo "make test           all checks and tests"
	@echo "make slow           tests that make large files or train a model"
	@echo "make bench          times and memory against MergeKit and the disk (makes 26 GB of data)"
	@echo "make precision      what rounding leaves of a merge, measured: docs/precision.md and its plot"
	@echo "make torture        merges cut off at every moment, and all that can fail: docs/reliability.md"
	@echo "make docs           write docs/methods.md and docs/differences.md anew"

# torch first: where a CPU build is on offer, pip then takes it instead of several GB of CUDA.
$(BIN)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile torch==2.13.0
	$(BIN)/pip install --quiet --no-compile --editable '.[eval,plot]'
	@touch $@

$(BIN)/.dev: $(BIN)/.run
	$(BIN)/pip install --quiet 'pip>=25.1'
	$(BIN)/pip install --quiet --group dev
	@touch $@

demo: $(BIN)/.run
	$(BIN)/python examples/demo/demo.py $(DEMO)

demo-smollm2: $(BIN)/.run
	$(BIN)/pip install --quiet gguf
	$(BIN)/python examples/smollm2/demo.py $(DEMO)/smollm2

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make.py --check

slow: $(BIN)/.dev
	$(BIN)/pip install --quiet --editable '.[lm-eval]'
	$(BIN)/python -m pytest -m slow

$(PEER)/.done:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet torch==2.13.0
	$(PEER)/bin/pip install --quiet mergekit==0.1.5
	@touch $@

bench: $(BIN)/.run $(PEER)/.done
	PEER_BIN=$(abspath $(PEER)/bin) $(BIN)/python bench/run.py
	$(BIN)/python bench/in_memory.py
	PEER_BIN=$(abspath $(PEER)/bin) $(BIN)/python bench/studies.py

precision: $(BIN)/.run
	$(BIN)/python bench/precision.py

torture: $(BIN)/.dev
	$(BIN)/python bench/torture.py --write
	$(BIN)/python bench/fuzz.py --write

docs: $(BIN)/.dev
	$(BIN)/python docs/make.py
	$(BIN)/python docs/differences.py

clean:
	rm -rf $(VENV) $(PEER) $(DEMO) bench/data .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
