# Two commands do all the set-up on a machine with Python 3.11+ and make:
#   make demo    the whole path on a real table: search, report, package, serve, ask
#   make test    ruff, mypy, import-linter, pytest
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export BENTOML_DO_NOT_TRACK ?= true

.PHONY: help demo test lint format test-container test-slow cpu-torch clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

cpu-torch: $(BIN)/python  ## install torch for CPUs before anything pulls gigabytes of CUDA
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --torch-backend cpu -c constraints.txt torch

# A strict editable install links file by file, so that mypy sees both packages; a new file needs a new install.
SOURCES := $(shell find mtl_bento search -name '*.py' 2>/dev/null | LC_ALL=C sort)
$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt $(VENV)/.sources
	$(BIN)/pip install --quiet -c constraints.txt -e '.[search,flights]' --config-settings editable_mode=strict
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt $(VENV)/.sources
	$(BIN)/pip install --quiet -c constraints.txt -e '.[search,flights,tweets,dev]' --config-settings editable_mode=strict
	@touch $@ $(VENV)/.run

# Changes when the list of files does.
$(VENV)/.sources: $(BIN)/python FORCE
	@echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@
FORCE:

demo: $(VENV)/.run  ## search, package, serve and ask a real table, in minutes
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m mtl_bento_search.demo

lint: $(VENV)/.dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## all checks
	OMP_NUM_THREADS=1 $(BIN)/pytest

test-slow: $(VENV)/.dev  ## tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

# ../shared/containers/prepare makes containers work on a machine without an image registry; elsewhere podman or docker do.
PREPARE := ../shared/containers/prepare
test-container: $(VENV)/.dev  ## build and run a container with `bentoml containerize`
	@if [ -x $(PREPARE) ]; then eval "$$($(PREPARE))"; fi; OMP_NUM_THREADS=1 $(BIN)/pytest -m container -s

format: $(VENV)/.dev  ## lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built and installed here; runs and BentoML's store stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
