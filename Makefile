# make demo: everything from nothing to the demo's table and figure.
# make test: everything from nothing to lint, types, doctests, documents and tests.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# By file: the code of a page shares one namespace, and so do the processes of a file.
PYTEST = python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)
OLDEST_TORCH = 2.6.0
OLDEST = .venv-oldest
PIP_INSTALL = pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint types tests test-oldest wheel clean

help:
	@grep -E '^# make' $(MAKEFILE_LIST) | sed 's/^# //'

demo: $(VENV)/.examples
	$(VENV)/bin/python examples/demo.py $(DEMO_FLAGS)

test: lint types tests

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

tests: $(VENV)/.dev
	$(VENV)/bin/$(PYTEST)

# The library's own tests on the lowest torch that it supports; the newest is in `make test`.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/$(PYTEST) torch_awp $(wildcard tests/test_*.py)

wheel: $(VENV)/.dev
	$(VENV)/bin/python -m build

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) -e '.[examples]'
	touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) -e '.[examples,dev]'
	touch $@ $(VENV)/.examples

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/$(PIP_INSTALL) torch==$(OLDEST_TORCH) -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist data runs
