# Everything here sets itself up: the first target that needs it makes .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer
LATEST := .venv-latest
VLLM := .venv-vllm
# Versions come from requirements.lock, which pip reads as constraints: it pins all versions for
# every Python and system, but no files, so pip takes torch's CPU build wherever one is on offer.
# (uv.lock names the one file of each package, for torch on Linux several GB of CUDA.)
LOCK := requirements.lock
LOCKED := --quiet --constraint $(LOCK) --build-constraint $(LOCK)
# vLLM wants other versions than this lock has: its environment has a lock of its own.
VLLM_LOCK := requirements-vllm.lock
# `make lock UPGRADE=` keeps the versions in the lock and adds what pyproject.toml has new.
UPGRADE ?= --upgrade
# `make test-latest TORCH=torch==2.13.0` tests with this torch instead of the newest.
TORCH ?= torch
DEMO := demo-out
# Many tests start processes: each would compile all that it imports where bytecode is not kept.
export PYTHONDONTWRITEBYTECODE :=
# Pages that `make docs` fills to 100 columns; three others have scripts that write them.
PROSE = README.md CHANGELOG.md CONTRIBUTING.md $(wildcard bench/*.md examples/*/README.md) \
	$(filter-out docs/methods.md docs/differences.md docs/families.md,$(wildcard docs/*.md))

WHEELS := linux-x86_64 linux-aarch64 macos-aarch64 macos-x86_64 windows-x86_64

.PHONY: help kernels wheels sanitize sanitize-addresses demo demo-smollm2 demo-vllm studio test-studio quick test test-vllm test-ray test-latest lock lint slow bench precision torture families docs site clean

help:
	@echo "make demo           train three small experts by reinforcement learning, sweep, score, report"
	@echo "make demo-smollm2   merge SmolLM2-135M-Instruct with a fine-tune of it, and let them chat"
	@echo "make demo-vllm      run the demo's first study through vLLM, and compare it with transformers"
	@echo "make studio         open the studio on the demo's experts, which it trains first"
	@echo "make test-studio    go through the studio in Chromium, and check it with axe-core (needs npm)"
	@echo "make quick          run the laws and the tests of the rooms that a change touches, in a minute"
	@echo "make test           run all checks and tests"
	@echo "make test-vllm      run the tests that need vLLM, in $(VLLM)"
	@echo "make test-ray       run the tests on Ray clusters of this machine"
	@echo "make test-latest    run the tests with the newest dependencies, in $(LATEST)"
	@echo "make lock           write $(LOCK) with the newest compatible versions"
	@echo "make kernels        compile the kernels for this machine"
	@echo "make wheels         build wheels for Linux, macOS and Windows in dist"
	@echo "make sanitize       run the kernels' tests with UBSan's checks compiled in"
	@echo "make sanitize-addresses  run them with AddressSanitizer, by a clang of the system"
	@echo "make slow           run tests that write large files or train a model"
	@echo "make bench          measure time and memory against MergeKit and the disk (writes 26 GB)"
	@echo "make precision      measure what rounding leaves of a merge: docs/precision.md and its plot"
	@echo "make torture        interrupt merges at every moment, inject faults: docs/reliability.md"
	@echo "make families       merge, stack and run every model type of transformers: docs/families.md"
	@echo "make docs           regenerate methods, differences, README's output and the architecture picture"
	@echo "make site           build the documentation as a site, in build/site; fails on broken links"

# The pip of an older Python knows no --build-constraint, so the lock's own pip comes first.
$(BIN)/.run: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(LOCK) pip
	$(BIN)/pip install $(LOCKED) --no-compile --editable '.[eval,plot]'
	@touch $@

$(BIN)/.dev: $(BIN)/.run
	$(BIN)/pip install $(LOCKED) --no-compile --group dev
	@touch $@

kernels: $(BIN)/.dev
	$(BIN)/python src/merganser/kernels/build.py

wheels: $(BIN)/.dev
	for target in $(WHEELS); do MERGANSER_TARGET=$$target $(BIN)/pip wheel $(LOCKED) --no-deps --wheel-dir dist . || exit 1; done

sanitize: $(BIN)/.dev
	MERGANSER_SANITIZE=undefined $(BIN)/python -m pytest tests/kernels tests/laws/test_few.py
	$(BIN)/python -m merganser.kernels.build

# AddressSanitizer needs a clang of the system that brings its library (Debian: clang-19).
CLANG ?= clang-19
sanitize-addresses: $(BIN)/.dev
	LD_PRELOAD=$$($(CLANG) -print-file-name=libclang_rt.asan-$$(uname -m).so) ASAN_OPTIONS=detect_leaks=0 \
		MERGANSER_CLANG=$(CLANG) MERGANSER_SANITIZE=address \
		$(BIN)/python -m pytest tests/kernels tests/laws/test_few.py
	$(BIN)/python -m merganser.kernels.build

demo: $(BIN)/.run
	$(BIN)/python examples/demo/demo.py $(DEMO)

demo-smollm2: $(BIN)/.run
	$(BIN)/pip install $(LOCKED) gguf
	$(BIN)/python examples/smollm2/demo.py $(DEMO)/smollm2

$(VLLM)/.done: pyproject.toml $(VLLM_LOCK)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --constraint $(LOCK) pip
	$(VLLM)/bin/pip install --quiet --no-deps --no-compile --requirement $(VLLM_LOCK)
	$(VLLM)/bin/pip install --quiet --no-deps --no-compile --build-constraint $(LOCK) --editable .
	@touch $@

demo-vllm: $(VLLM)/.done
	$(VLLM)/bin/python examples/demo/through_vllm.py $(DEMO)

test-vllm: $(VLLM)/.done
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -m vllm tests/study/test_vllm.py tests/serving/test_vllm_serving.py

$(BIN)/.ray: $(BIN)/.dev
	$(BIN)/pip install $(LOCKED) --no-compile --editable '.[eval,plot,ray]'
	@touch $@

test-ray: $(BIN)/.ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "ray and not slow" tests/workers/test_ray.py

$(BIN)/.serve: $(BIN)/.run
	$(BIN)/pip install $(LOCKED) --no-compile --editable '.[eval,plot,serve]'
	@touch $@

# Training takes minutes the first time; experts and problems are those of `make demo`.
studio: $(BIN)/.serve
	$(BIN)/python examples/demo/studio.py $(DEMO)

# axe-core is no dependency, and no copy of it is here: its licence is another.
AXE := build/axe/node_modules/axe-core/axe.min.js
$(AXE):
	npm install --silent --no-audit --no-fund --prefix build/axe axe-core@4

test-studio: $(BIN)/.dev $(BIN)/.serve $(AXE)
	OMP_NUM_THREADS=1 MERGANSER_AXE=$(AXE) $(BIN)/python -m pytest -m slow tests/studio/test_page.py

# `make quick BASE=REV` compares with another revision than main.
BASE ?= main
quick: $(BIN)/.dev
	$(BIN)/python tests/quick.py --base $(BASE)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not ray"

# torch first: what needs it takes the one that is there.
test-latest:
	rm -rf $(LATEST)
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/pip install --quiet --upgrade pip
	$(LATEST)/bin/pip install --quiet --no-compile $(TORCH)
	$(LATEST)/bin/pip install --quiet --no-compile --editable '.[eval,plot]' --group dev
	$(LATEST)/bin/pip list
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -n 2 -m "not slow"
	$(LATEST)/bin/python docs/families.py --check

# uv resolves for all Pythons and systems at once; it reads metadata and installs nothing. The extra
# `all` has every extra but Ray's, and those of vLLM, which pins other versions.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	.venv-lock/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 $(UPGRADE) \
		--extra all --extra ray --group dev --group setup --annotation-style line \
		--custom-compile-command "make lock" --output-file $(LOCK)
	@echo "now: make test, and the date of the lock in CHANGELOG.md"

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make.py --check

slow: $(BIN)/.dev
	$(BIN)/pip install $(LOCKED) --editable '.[lm-eval]'
	$(BIN)/python -m pytest -m slow

$(PEER)/.done: $(LOCK)
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet --constraint $(LOCK) pip
	$(PEER)/bin/pip install $(LOCKED) mergekit
	@touch $@

bench: $(BIN)/.run $(PEER)/.done
	PEER_BIN=$(abspath $(PEER)/bin) $(BIN)/python bench/run.py
	$(BIN)/python bench/in_memory.py
	PEER_BIN=$(abspath $(PEER)/bin) $(BIN)/python bench/studies.py

precision: $(BIN)/.run
	$(BIN)/python bench/precision.py

torture: $(BIN)/.dev
	$(BIN)/python tests/robustness/torture.py --write
	$(BIN)/python tests/robustness/fuzz.py --write

# Continues an interrupted run; `make families FRESH=--fresh` begins anew.
families: $(BIN)/.dev
	$(BIN)/python docs/families.py $(FRESH)

docs: $(BIN)/.dev
	$(BIN)/python docs/make.py
	$(BIN)/python docs/differences.py
	$(BIN)/python docs/console.py
	$(BIN)/python docs/reflow.py $(PROSE)

site: $(BIN)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(PEER) $(LATEST) $(VLLM) .venv-lock $(DEMO) bench/data .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
