# make install | demo | test | test-slow | lint | types | bench | docs: safe to repeat; nothing up to date is rebuilt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := --config configs/asr_transformer.yaml --config configs/demo/speech.yaml --experiment demo

.PHONY: install demo test test-slow lint types bench docs clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[demo,dev,docs,export,media,report,serve,sweep]'
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[bench]'
	$(BIN)/python -m benchmarks $(if $(SPEECH),--speech $(SPEECH))

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
