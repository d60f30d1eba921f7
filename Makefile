# Two commands do all the set-up on a fresh machine with python3 (3.11 or newer) and make: `make train` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: train test check bench clean

train: $(VENV)/installed-examples  ## train the default on real images, evaluate it, draw its report
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed-tests  ## the whole test suite
	$(BIN)/python -m pytest

check: $(VENV)/installed-development  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv-bench/installed  ## against PyTorch, pythae, MONAI, Flax; MNIST= its IDX files, IMAGES= a folder of grey images
	.venv-bench/bin/python benchmarks/bench.py --mnist='$(MNIST)' --images='$(IMAGES)'

clean:  ## remove the environment; runs stay
	rm -rf $(VENV)

# An extra is installed once, and again when pyproject.toml changes.
$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

.venv-bench/installed: pyproject.toml benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt --editable .
	touch $@
