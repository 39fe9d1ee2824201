# `make demo` and `make test` need Python 3.11 or newer, pip, and a package registry; everything else they set up.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
BIN := $(VENV)/bin

LOWEST := .venv-lowest

.PHONY: help setup demo test test-lowest lint docs clean

help:
	@echo "make setup  make the virtual environment in $(VENV), with what the checks need"
	@echo "make demo   set up, then distil a student on the embedded data (about 5 minutes on 2 cores)"
	@echo "make test   set up, then run the tests"
	@echo "make test-lowest  run the tests with the lowest versions that pyproject.toml allows (needs uv), and record the result"
	@echo "make lint   set up, then check lint, format and types"
	@echo "make docs   set up, then build the documentation in docs/_build/html; a warning is an error"
	@echo "make clean  remove the virtual environment, the demo's output and the built documentation"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@echo "==> virtual environment in $(VENV), with the package and its dependencies (pip, a few minutes the first time)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, found %d.%d: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $(DOCS_STAMP)

demo: setup
	@echo "==> distilling a student of 70 thousand parameters for five classes of glyphs-100"
	$(BIN)/subdistill demo

test: setup
	@echo "==> tests, a process on each core"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-lowest:
	@echo "==> virtual environment in $(LOWEST), with the lowest versions that pyproject.toml allows"
	uv venv --quiet --clear --python 3.11 $(LOWEST)
	uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadfile --junitxml $(LOWEST)/tests.xml
	$(LOWEST)/bin/python scripts/record_lowest.py $(LOWEST)/tests.xml

lint: setup
	@echo "==> lint, format, types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_STAMP)
	@echo "==> documentation"
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) $(LOWEST) demo-student docs/_build docs/_generated docs/reports
