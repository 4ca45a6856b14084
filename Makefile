# Every target does its own set-up, in .venv, and can be run again. "make" alone lists them.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed.stamp

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench fuzz

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## router, service and web page, until Ctrl-C (DEMO_PORT changes the port)
	@$(BIN)/python demos/run.py

test: $(INSTALLED)  ## all tests (ARGS="-k name" passes options to pytest)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## calls a second, latency and CPU per call
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(INSTALLED)  ## the property tests, with many more examples than "make test" tries
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m hypothesis $(ARGS)

$(INSTALLED): setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
