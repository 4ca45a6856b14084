# Every target does its own set-up, in .venv, and can be run again. "make" alone lists them.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed.stamp

.DEFAULT_GOAL := help
.PHONY: help demo test lint budget scale compare bench routers large fronts rabbitmq fuzz

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## router, service and web page, until Ctrl-C (DEMO_PORT=8080, FRONT=mongrel2, ENGINE=rabbitmq)
	@$(BIN)/python demos/run.py

test: $(INSTALLED)  ## all tests (ARGS="-k name" passes options to pytest)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: $(INSTALLED)  ## calls a second, latency and CPU of ourselves and others (QUICK=1: in three minutes)
	$(BIN)/python -m benchmarks.compare $(ARGS)

bench: $(INSTALLED)  ## the same of our own forms alone
	$(BIN)/python -m benchmarks.compare --only butler_mesh $(ARGS)

budget: $(INSTALLED)  ## instructions per call, held to what was recorded (needs valgrind)
	$(BIN)/python -m benchmarks.budget $(ARGS)

scale: $(INSTALLED)  ## the router among thousands (needs valgrind; ARGS=--processes: real sockets instead)
	$(BIN)/python -m benchmarks.scale $(ARGS)

routers: $(INSTALLED)  ## one and two routers behind one list of endpoints
	$(BIN)/python -m benchmarks.routers $(ARGS)

large: $(INSTALLED)  ## bodies of 1 and 50 MB: MB/s, CPU, and what small calls feel of them
	$(BIN)/python -m benchmarks.large $(ARGS)

fronts: $(INSTALLED)  ## what a call adds to a web page, and 50 MB through each front (needs wrk; QUICK=1)
	$(BIN)/python -m benchmarks.fronts $(ARGS)

rabbitmq: $(INSTALLED)  ## calls and stored requests over RabbitMQ beside pika, nameko and celery (QUICK=1)
	$(BIN)/python -m benchmarks.rabbitmq $(ARGS)

fuzz: $(INSTALLED)  ## the property tests, with many more examples than "make test" tries
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m hypothesis $(ARGS)

$(INSTALLED): setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
