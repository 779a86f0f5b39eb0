# make demo: everything from nothing to the demo's table and figure.
# make test: everything from nothing to lint, types, wheel, documents and the fast tests.
# make test-all: the slow tests too; before a change counts as done.
# make test-trainers: fastai, skorch, ignite and others, which nothing else here needs.
# make test-gpu: the contract on your accelerator, in at most ten minutes on one GPU.
# make benchmark-gpu: what it costs there.
# make test-xla: the contract on a device of torch_xla, without a TPU its CPU device; 7 GB.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# By group: conftest.py says which tests share a process.
PYTEST = python -m pytest -n 2 --dist loadgroup $(TIER) $(PYTEST_FLAGS)
EVERY_TIER = -m ''
SCHEMA = $(VENV)/bin/check-jsonschema --builtin-schema vendor.
OLDEST_TORCH = 2.6.0
OLDEST = .venv-oldest
XLA_TORCH = 2.9.0
XLA = .venv-xla
PIP_INSTALL = pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all lint types package releasable tests test-gpu \
	benchmark-gpu test-oldest test-trainers test-xla clean

help:
	@grep -E '^# make' $(MAKEFILE_LIST) | sed 's/^# //'

demo: $(VENV)/.examples
	$(VENV)/bin/python examples/demo.py $(DEMO_FLAGS)

test: lint types package tests

test-all: TIER = $(EVERY_TIER)
test-all: test

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(SCHEMA)github-workflows .github/workflows/*.yml
	$(SCHEMA)github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(SCHEMA)github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(SCHEMA)citation-file-format --force-filetype yaml CITATION.cff

types: $(VENV)/.dev
	$(VENV)/bin/mypy

# Collected, so that it does not rot, in `make test`; refused where there is no accelerator.
test-gpu: $(VENV)/.dev
	$(VENV)/bin/python -m pytest --durations 5 tests/gpu $(EVERY_TIER) $(PYTEST_FLAGS)

benchmark-gpu: $(VENV)/.dev
	$(VENV)/bin/python benchmarks/overhead.py --device cuda --output benchmarks/results/overhead-gpu.json
	$(VENV)/bin/python benchmarks/full_model.py --output benchmarks/results/full-model-gpu.json

# A source archive, the wheel made from it, and whether an index would take and show them.
package: $(VENV)/.dev
	rm -rf dist
	$(VENV)/bin/python -m build --quiet --no-isolation
	$(VENV)/bin/twine check --strict dist/*
	$(VENV)/bin/check-wheel-contents dist

tests: $(VENV)/.dev
	$(VENV)/bin/python -m pytest --quiet --quiet --collect-only tests/gpu
	$(VENV)/bin/python -m pytest --quiet --quiet --collect-only tests/xla
	$(VENV)/bin/$(PYTEST)

# The library's own tests on the lowest torch that it supports; the newest is in `make test`.
# All of them with TIER="-m ''".
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/$(PYTEST) torch_awp $(wildcard tests/test_*.py)

# Recipes of examples/TRAINERS.md and more; what is pinned for the other tests stays.
test-trainers: $(VENV)/.trainers
	$(VENV)/bin/python -m pytest tests/more_trainers $(EVERY_TIER) $(PYTEST_FLAGS)

# One process, since a TPU belongs to one. Collected in `make test`, as tests/gpu is.
test-xla: $(XLA)/.installed
	$(XLA)/bin/python -m pytest --durations 5 tests/xla $(TIER) $(PYTEST_FLAGS)

# What a tag may publish: the version that it names, described in the changelog, by a named owner.
releasable: package
	@version=$$($(VENV)/bin/hatchling version); refuse() { echo "Not released: $$1"; exit 1; }; \
	[ '$(TAG)' = "v$$version" ] || refuse "TAG is '$(TAG)' where v$$version was expected"; \
	grep -q "^## $$version - 20" CHANGELOG.md || refuse "CHANGELOG.md gives $$version no date"; \
	! grep -q OWNER pyproject.toml || refuse "pyproject.toml still says OWNER"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) -e '.[examples]'
	touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) -e '.[examples,dev]'
	touch $@ $(VENV)/.examples

$(VENV)/.trainers: $(VENV)/.dev
	$(VENV)/bin/$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) -e '.[examples,dev,trainers]'
	touch $@

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/$(PIP_INSTALL) torch==$(OLDEST_TORCH) -e '.[test]'
	touch $@

$(XLA)/.installed: pyproject.toml
	$(PYTHON) -m venv $(XLA)
	$(XLA)/bin/$(PIP_INSTALL) torch==$(XLA_TORCH) torch_xla==$(XLA_TORCH) -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(XLA) build dist data runs
