# make install | test | test-all | lint | quickstart | clean; make test ARGS="-x tests/data". A fresh machine needs only python3 (3.11 or newer), pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
# what trains the quickstart; on several processes: make quickstart SWEEP="torchrun --nproc-per-node 2 -m dslight sweep"
SWEEP ?= $(BIN)/dslight sweep --jobs $(JOBS)
# one thread per process: the quickstart's networks are so small that more threads mostly wait for each other
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# a process per core; one that is done takes tests over from the others. One process: make test WORKERS=0
WORKERS ?= logical
PYTEST = $(ONE) $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

.PHONY: install test test-all safety lint quickstart quickstart-data clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

test: install
	$(PYTEST) $(ARGS)

test-all: install
	$(PYTEST) -m 'slow or not slow' $(ARGS)

# what was tried against each promise of docs/security.md, and how it ended
safety: install
	$(ONE) $(BIN)/python -m pytest tests/safety -q $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

quickstart-data: install
	$(BIN)/python -m data_prep.digits --out runs/quickstart/data
	$(BIN)/python -m data_prep.digits_ceiling --out runs/quickstart/data/ceiling.json

quickstart: quickstart-data
	PATH="$(CURDIR)/$(BIN):$$PATH" $(SWEEP) recipes/ablations/quickstart_encoders.yaml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(SWEEP) recipes/ablations/quickstart.yaml
	$(BIN)/dslight report recipes/ablations/quickstart.yaml --out runs/quickstart

clean:
	rm -rf runs/quickstart build *.egg-info .pytest_cache .ruff_cache
