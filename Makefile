# Every target sets up what it needs by itself: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = $(VENV)-demo
COMPILERS = $(VENV)-compilers
READY = $(VENV)/.ready

.DEFAULT_GOAL = help
.PHONY: help demo test lint types readme notebooks docs faults survey verify-memory hostile fuzz accelerators metrics trainings jax-flow kills meshes shards sampling datasets nmboffi golden golden-faults first-minutes device device-report bench bench-convert bench-phema bench-states bench-training bench-download digits toy clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(DEMO)/.ready  ## convert the digits snapshot, run PyTorch and JAX on it, print how they agree
	$(DEMO)/bin/python -m golden.demo

test: $(READY)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)  ## style, and the layers (in pyproject.toml) that imports keep to
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)  ## mypy
	$(BIN)/mypy

readme: $(READY)  ## every command in README and docs/, and the output that they show
	$(BIN)/python -m tests.surveys.readme

notebooks: $(READY)  ## executes docs/notebooks/, beside what they show; make notebooks ARGS=--write stores it
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.surveys.notebooks $(ARGS)

docs: $(READY)  ## the reference of all public names, in site/
	$(BIN)/python docs/reference.py site

faults: $(READY)  ## 173 faults made on purpose, and what edm2-verify says to each
	$(BIN)/python -m tests.surveys.faults $(ARGS)

survey: $(READY)  ## edm2-verify on 200 correct random networks: it must agree with all
	$(BIN)/python -m tests.surveys.verify $(ARGS)

verify-memory: $(READY)  ## edm2-verify on the largest published size, its peak memory and time; make verify-memory ARGS="edm2-img512-s"
	$(BIN)/python -m tests.bench.verify_memory $(ARGS)

hostile: $(READY)  ## hundreds of broken or hostile inputs, and what edm2-convert says to each: make hostile ARGS=--messages
	$(BIN)/python -m tests.surveys.hostile $(ARGS)

fuzz: $(READY)  ## mutants: of snapshots (20,000; 5,000 beside torch itself), training states (5,000), truths (2,000), checkpoints (6,000, and flipped bits)
	$(BIN)/python -m tests.surveys.fuzz $(ARGS)
	$(BIN)/python -m tests.surveys.differential
	$(BIN)/python -m tests.surveys.fuzz_states
	$(BIN)/python -m tests.surveys.fuzz_truths
	$(BIN)/python -m tests.surveys.fuzz_checkpoints

accelerators: $(COMPILERS)/.ready  ## every size compiled for TPUs and GPUs that are not here, in an environment of their compilers
	$(COMPILERS)/bin/python -m tests.surveys.accelerators $(ARGS)

metrics: $(READY)  ## the metrics of JAX beside PyTorch's, at full size, and NVlabs' own: make metrics ARGS="--only nvlabs --nvlabs DIR"
	$(BIN)/python -m tests.surveys.metrics $(ARGS)

trainings: $(READY)  ## training in JAX beside torch_ref, and NVlabs' own loop: make trainings ARGS="--nvlabs DIR"
	$(BIN)/python -m tests.surveys.training $(ARGS)

jax-flow: $(READY)  ## kvfrans/jax-flow's own trainer on converted weights: make jax-flow ARGS="--jax-flow DIR"
	$(BIN)/python -m tests.surveys.jax_flow $(ARGS)

kills: $(READY)  ## trainings, conversions and averages, killed at random moments, and what comes of them
	$(BIN)/python -m tests.surveys.kills $(ARGS)

meshes: $(READY)  ## every function that computes, on meshes of four (host) devices of every kind
	$(BIN)/python -m tests.surveys.meshes $(ARGS)

shards: $(READY)  ## what each of four processes reads of an S-size checkpoint in a store, beside its share
	$(BIN)/python -m tests.surveys.shards $(ARGS)

sampling: $(READY)  ## samples of PyTorch and JAX side by side: every option, 256 seeds, and what a classifier says
	$(BIN)/python -m tests.surveys.sampling $(ARGS)

datasets: $(READY)  ## edm2-dataset beside NVlabs' dataset_tool.py: make datasets ARGS="--nvlabs DIR"
	$(BIN)/python -m tests.surveys.datasets $(ARGS)

nmboffi: $(READY)  ## PrecondUNet, EDM2UNet and projections beside jax-edm2's own: make nmboffi ARGS="--jax-edm2 DIR"
	$(BIN)/python -m tests.surveys.jax_edm2_bridge $(ARGS)

golden: $(READY)  ## record all goldens again and show how they differ; ARGS=--check writes nothing
	$(BIN)/python -m golden.manifests $(ARGS)
	$(BIN)/python -m golden.ema $(ARGS)
	$(BIN)/python -m golden.torch_streams $(ARGS)
	$(BIN)/python -m golden.likelihood $(ARGS)
	$(BIN)/python -m golden.truths $(ARGS)

first-minutes:  ## what a person does first, from the wheel in a folder of their own: convert, sample, fine-tune, verify
	$(PYTHON) tests/surveys/first_minutes.py

golden-faults: $(READY)  ## every fault of the corpus that changes numbers, and the golden that trips over it
	$(BIN)/python -m tests.surveys.golden_faults $(ARGS)

device: $(READY)  ## everything that waits for a GPU or TPU, in nine minutes: make device ARGS="--device gpu"
	$(BIN)/python -m tests.surveys.device $(ARGS)

device-report: $(READY)  ## what that has written as tables for BENCHMARKS.md: make device-report FILE=device.json
	@$(BIN)/python -m tests.surveys.device_report $(FILE)

bench: $(READY)  ## both frameworks on this machine, from snapshot to picture: make bench ARGS="--device gpu --precision float16"
	$(BIN)/python -m tests.bench.speed $(ARGS)

bench-convert: $(READY)  ## edm2-convert beside the plain way and cp, on S- and XXL-size snapshots
	$(BIN)/python -m tests.bench.convert $(ARGS)

bench-states: $(READY)  ## a training state of S size, there and back, beside cp
	$(BIN)/python -m tests.bench.states $(ARGS)

bench-phema: $(READY)  ## edm2-phema on 16 XS-size snapshots beside cat: make bench-phema ARGS="--nvlabs DIR"
	$(BIN)/python -m tests.bench.phema $(ARGS)

bench-training: $(READY)  ## a step of training beside torch_ref's, and its memory: make bench-training ARGS="--memory edm2-img512-s"
	$(BIN)/python -m tests.bench.training $(ARGS)

bench-download: $(READY)  ## a download from loopback beside curl and sha256sum
	$(BIN)/python -m tests.bench.download $(ARGS)

digits: $(READY)  ## train the digits network again, about 12 minutes
	$(BIN)/python -m golden.digits train --outdir runs/digits
	$(BIN)/python -m golden.digits sample runs/digits/network-snapshot-0000512-0.100.pkl --picture runs/digits/digits.png

toy: $(READY)  ## autoguidance's toy in two dimensions, trained, sampled and drawn to toy.png in a minute
	$(BIN)/python docs/toy.py toy.png $(ARGS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(DEMO)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train]'
	touch $@

$(COMPILERS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(COMPILERS)
	$(COMPILERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tpu-compile,gpu-compile]'
	touch $@

clean:  ## remove what was made: environments, builds
	rm -rf $(VENV) $(DEMO) $(COMPILERS) build *.egg-info
