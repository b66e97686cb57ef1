# make install | test | lint | quickstart | clean. A fresh machine needs only python3 (3.11 or newer), pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
# one thread per process: the quickstart's networks are so small that more threads mostly wait for each other
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: install test test-all lint quickstart clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

test: install
	$(ONE) $(BIN)/python -m pytest

test-all: install
	$(ONE) $(BIN)/python -m pytest -m 'slow or not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

quickstart: install
	$(BIN)/python -m data_prep.digits --out runs/quickstart/data
	$(BIN)/python -m data_prep.digits_ceiling --out runs/quickstart/data/ceiling.json
	$(BIN)/dslight sweep recipes/ablations/quickstart_encoders.yaml --jobs $(JOBS)
	$(BIN)/dslight sweep recipes/ablations/quickstart.yaml --jobs $(JOBS)
	$(BIN)/dslight report recipes/ablations/quickstart.yaml --out runs/quickstart

clean:
	rm -rf runs/quickstart build *.egg-info .pytest_cache .ruff_cache
