# Everything runs in .venv, which any target sets up by itself.
#   make demo      the main job on real text: trains, is killed, resumes, writes (under 5 minutes on 2 cores)
#   make test      the test suite: CPU, no network
#   make check     format, lint, types, floors
#   make bench     the measurements of README.md (long); DEEPSPEED_PYTHON=VENV/bin/python for its rows, see benchmarks/peers.py
#   make conformance EXAMPLES=path/to/csl-examples   the public CSL examples, one row each
#   make modelzoo FILES=path/to/modelzoo/src   its published trainer files, unmodified, one row each
#   make sanitize  the CSL tests with the fast engine built under ASan and UBSan (gcc or clang)
#   make bench-gpu tests and measurements that need a CUDA device
#
# On Linux the package index serves PyTorch with CUDA (several GB). For the CPU build:
#   make demo TORCH_PIP="--index-url https://download.pytorch.org/whl/cpu"

PYTHON    ?= python3
TORCH_PIP ?=
BIN       := .venv/bin
READY     := .venv/.ready
EXTRAS    := dev,hf,keras,parquet,tensorboard,cerebras,gguf
# Keras picks its backend when it is imported.
export KERAS_BACKEND ?= torch

.PHONY: all demo test check bench bench-gpu conformance modelzoo sanitize clean

all: check test

demo: $(READY)
	$(BIN)/openwafer demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(if $(DEEPSPEED_PYTHON),--deepspeed-python $(DEEPSPEED_PYTHON))

bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py --look
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

conformance: $(READY)
	$(BIN)/python -m openwafer.wafer.conformance $(EXAMPLES)

modelzoo: $(READY)
	$(BIN)/python -m openwafer.train.modelzoo.published $(FILES)

SANITIZED := build/_core_sanitized.so
CORE      := openwafer/wafer/sim/core

$(SANITIZED): $(wildcard $(CORE)/*)
	mkdir -p build
	cc -std=c11 -g -O1 -ffp-contract=off -fPIC -shared -fsanitize=address,undefined -fno-sanitize-recover=undefined \
		-fno-omit-frame-pointer -o $@ $(CORE)/core.c -lm

# Python itself is not instrumented: its leaks are not ours to find.
sanitize: $(READY) $(SANITIZED)
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		OPENWAFER_CORE=$(abspath $(SANITIZED)) $(BIN)/python -m pytest tests/wafer -p no:cacheprovider

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache

# Torch first and alone, so that TORCH_PIP picks its build and nothing else brings another one.
$(READY): pyproject.toml constraints.txt $(wildcard setup.py openwafer/*/*.c)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_PIP) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@
