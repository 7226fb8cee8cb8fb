# `make demo` and `make test` need Python 3.11 or newer and nothing else: they build .venv on first use.
#
#   make demo                                   the embedded default, end to end
#   make test                                   the tests (without the slow ones)
#   make demo PYTHON=python3.12                 another interpreter
#   make demo PIP_EXTRA_INDEX=URL               another package index besides pip's own, for example PyTorch's CPU
#                                               wheels: https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
PIP_EXTRA_INDEX ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
PROCESSES ?= 2

BIN := $(VENV)/bin
INDEX := $(if $(PIP_EXTRA_INDEX),--extra-index-url $(PIP_EXTRA_INDEX))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(INDEX)

.PHONY: help demo test test-slow lint format bench docs wheel clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: $(VENV)/.installed  ## build a memory, recognise held-out images, print the table, write the picture
	$(BIN)/rarvision demo $(DEMO_ARGS)

test: $(VENV)/.installed-test  ## the tests
	$(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test $(VENV)/.installed-scale  ## the heavier suites
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-test $(VENV)/.installed-lint  ## style, types, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-lint  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed $(VENV)/.installed-bench  ## the benchmarks; each prints what it measured
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.installed  ## write the parts of docs/ that are generated
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_datasets.py

wheel: $(VENV)/.installed  ## build dist/*.whl
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --build-constraint constraints.txt \
		$(INDEX) --wheel-dir dist .

clean:  ## remove .venv and what was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The stamps: installed again only when the requirements have changed.
$(VENV)/.pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rarvision needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Try: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) pip
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.pip
	$(INSTALL) --build-constraint constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --group test --group serve --group tune --group detection
	$(INSTALL) --no-deps lvis # the reference in tests; what it asks for besides (OpenCV, Cython) is 200 MB for drawing
	@touch $@

$(VENV)/.installed-scale: $(VENV)/.installed
	$(INSTALL) --group scale
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(INSTALL) --group bench --group detection
	$(INSTALL) --no-deps lvis
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(INSTALL) --group lint
	@touch $@
