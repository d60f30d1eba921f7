# Two commands do all the set-up on a fresh machine with python3 (3.11 or newer) and make: `make train` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: train test check clean

train: $(VENV)/installed-examples  ## train the default on real images, evaluate it, draw its report
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/installed-tests  ## the whole test suite
	$(BIN)/python -m pytest

check: $(VENV)/installed-development  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environment; runs stay
	rm -rf $(VENV)

# An extra is installed once, and again when pyproject.toml changes.
$(VENV)/installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
