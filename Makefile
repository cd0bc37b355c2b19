# make install | demo | test | test-slow | lint | types | bench | docs | constraints: safe to repeat; nothing up to date is rebuilt.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALLED := .venv/.installed
DEMO := --config configs/asr_transformer.yaml --config configs/demo/speech.yaml --experiment demo

.PHONY: install demo test test-slow lint types bench docs constraints clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) '.[demo,dev,docs,export,media,report,serve,sweep]'
	@touch $@

# Resumes an interrupted demo; a finished one is only tested again.
demo: $(INSTALLED)
	$(BIN)/python cli.py fit $(DEMO) $(if $(wildcard runs/demo/checkpoints/last.ckpt),--ckpt_path last)
	$(BIN)/python cli.py test $(DEMO)
	@echo 'Look at curves, spectrograms and alignments: $(BIN)/tensorboard --logdir runs'

# Three processes, each with one thread: the tests' networks are tiny, and many tests wait.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --maxschedchunk 1

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -s

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# About 20 minutes on two cores; SPEECH=FOLDER takes a corpus in LJ Speech's layout instead of noise.
bench: $(INSTALLED)
	$(PIP) '.[bench]'
	$(BIN)/python -m benchmarks $(if $(SPEECH),--speech $(SPEECH))

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The newest versions that setup.cfg allows, for every Python and system: run the tests, then commit.
constraints: $(INSTALLED)
	$(PIP) uv
	$(BIN)/uv pip compile setup.cfg --all-extras --universal --python-version 3.11 --upgrade \
		--no-annotate --custom-compile-command 'make constraints' --quiet --output-file constraints.txt
	$(MAKE) install

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
