# Every target does its own set-up, in .venv, and can be run again. "make" alone lists them.

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
INSTALLED := .venv/installed.stamp

# What takes longest first. Tests mostly wait, so two parts run side by side on one core.
SHARDS := test-processes test-web test-connections test-rest
processes := tests/processes tests/operations
web := tests/web tests/test_demo.py
connections := tests/connections tests/compat
# What a part has said, in one piece; make 3 (macOS) mixes them.
TOGETHER := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help demo test $(SHARDS) lint budget scale compare bench routers large fronts rabbitmq fuzz

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## router, service and web page, until Ctrl-C (DEMO_PORT=8080, FRONT=mongrel2, ENGINE=rabbitmq)
	@$(BIN)/python demos/run.py

test: $(INSTALLED)  ## all tests, in parts side by side (ARGS="-k name": one pytest with these options)
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --keep-going $(TOGETHER) $(SHARDS)
endif

test-processes test-web test-connections: test-%: $(INSTALLED)
	$(BIN)/python -m pytest -q $($*)

test-rest: $(INSTALLED)
	$(BIN)/python -m pytest -q tests $(addprefix --ignore=,$(processes) $(web) $(connections))

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
