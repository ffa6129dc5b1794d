# `make demo` and `make test` set up all they need in .venv; nothing is installed anywhere else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check lock clean help

help:  ## list the targets
	@grep -E '^[a-z.]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/  -/'

demo: $(INSTALLED)  ## GFPL against Local on digits, through Flower's simulation engine
	$(BIN)/gfpl demo

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv: $(INSTALLED)  ## the environment alone

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

lock: $(INSTALLED)  ## pin every dependency anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --upgrade --output-file requirements.lock

clean:  ## remove the environment and everything the tools cached
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
