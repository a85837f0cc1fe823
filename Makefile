# Every target starts from nothing but Python 3.11 or 3.12, make and git.
.DELETE_ON_ERROR:
.PHONY: quickstart test quick lint docs torture peers bench clean

BIN := .venv/bin
RUN := runs/quickstart

quickstart: .venv/ready
	$(BIN)/python -m shared_tfm compare --config=configs/quickstart.py \
	  --sharing='none;all;cycle:3;sequence:3;cycle_rev:3;attention=all' \
	  --seeds=2 --workdir=$(RUN)

test: lint .venv/browser/ready
	$(BIN)/python -m pytest -n 2

quick: lint
	$(BIN)/python -m pytest -n 2 -m 'not slow'

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site: runs/site/docs/index.html.
docs: .venv/ready
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . runs/site

# Kills a run 50 times and makes every fault: at most 10 minutes on 2 cores.
torture: .venv/ready
	$(BIN)/python tests/torture.py --kills=50

# Needs PyTorch: the golden files made anew, and compared.
peers: .venv/ready
	./setup.sh peers
	$(BIN)/python tests/peers.py
	$(BIN)/python tests/hf_peers.py

# What is said of speed, measured here: benchmarks/results/DATE-BACKEND.md.
bench: .venv/ready
	$(BIN)/python -m benchmarks.suite

# A browser to open reports in; tests that need one say so where it cannot be had.
.venv/browser/ready: .venv/ready
	-./setup.sh browser && touch $@

.venv/ready: setup.sh requirements.lock pyproject.toml
	./setup.sh

clean:
	rm -rf .venv .jax_cache runs
