# Every target sets up what it needs by itself: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test lint types bench-convert digits clean

demo: $(READY)  ## convert the digits snapshot, run PyTorch and JAX on it, print how they agree
	$(BIN)/python -m golden.demo

test: $(READY)  ## all tests
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench-convert: $(READY)  ## edm2-convert beside the plain way and cp, on S- and XXL-size snapshots
	$(BIN)/python -m tests.bench_convert $(ARGS)

digits: $(READY)  ## train the digits network again, about 12 minutes
	$(BIN)/python -m golden.digits train --outdir runs/digits
	$(BIN)/python -m golden.digits sample runs/digits/network-snapshot-0000512-0.100.pkl --picture runs/digits/digits.png

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
