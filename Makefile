# `make demo` and `make test` set up all they need in .venv; nothing is installed anywhere else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.9
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test docker-test check device lock up register renew control submit status results down clean help

help:  ## list the targets
	@grep -E '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/  -/'

demo: $(INSTALLED)  ## GFPL against Local on digits, through Flower's simulation engine
	$(BIN)/gfpl demo

test: $(INSTALLED)  ## all tests
	$(BIN)/python -m pytest

docker-test: $(INSTALLED)  ## the tests in containers, with a Docker engine of their own where none runs
	tests/docker/engine.sh $(BIN)/python -m pytest -m docker

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv: $(INSTALLED)  ## the environment alone

# Torch comes by itself: where its builds without CUDA lie is known to uv, and no other place has them for every machine.
TORCH ?= $(shell grep -oE '^(torch|torchvision)==[^ ]+' requirements.lock)
TORCH_BACKEND ?= cpu

device: requirements-device.lock  ## the environment of a device: no CUDA, no Ray, a fifth of the disk
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements-device.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps \
		$(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) $(TORCH)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
# What torch brings along for CUDA and a device without a GPU does not need.
CUDA := nvidia-[a-z0-9-]*|cuda-[a-z-]*|triton

lock: $(INSTALLED)  ## pin every dependency anew: of this machine, and of devices
	$(BIN)/$(LOCK) --extra simulation --extra dev --upgrade --output-file requirements.lock
	sed -nE 's/^($(CUDA))==.*/\1/p' requirements.lock | sort -u > .venv/cuda.txt
	$(BIN)/$(LOCK) --constraint requirements.lock --excludes .venv/cuda.txt --upgrade \
		--no-emit-package torch --no-emit-package torchvision --output-file requirements-device.lock

# ---- a federation in containers: docs/deployment.md; TLS=1 for the one that strangers cannot use

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
STACK = $(COMPOSE) --project-name $(PROJECT) --file docker/compose$(if $(TLS),.tls).yml
FEDERATION = $(if $(TLS),compose-tls,compose)
CONTROL = $(STACK) run --rm gfpl
# To certs.sh NODES are names, here it is their number.
CERTS = env -u NODES docker/certs.sh
PROJECT ?= gfpl
NODES ?= 3
# With NODES=0 the server alone: for devices of their own.
SERVER = $(if $(filter 0,$(NODES)),superlink serverapp $(if $(TLS),gateway))
ARGS ?=

up: $(INSTALLED)  ## start a SuperLink and three nodes, and wait until they are connected; NODES=0: no nodes
	$(BIN)/gfpl data --quiet
	$(if $(TLS),test -f docker/certificates/server.pem || $(CERTS))
	$(STACK) build
	$(STACK) up --detach $(SERVER)
	$(if $(TLS),$(MAKE) register)
	$(CONTROL) nodes $(FEDERATION) --wait $(NODES)

register:  ## let the nodes whose keys are in docker/certificates into the federation
	$(MAKE) --no-print-directory TLS=1 control ARGS='register compose-tls $(patsubst docker/%,%,$(wildcard docker/certificates/*.pub))'

renew: TLS = 1
renew:  ## a new certificate of the server, in use at once: make renew NAMES='another.example.org'
	$(CERTS) $(NAMES)
	$(STACK) restart superlink
	$(STACK) exec -T gateway nginx -s reload

control:  ## the gfpl command inside: make control ARGS='nodes compose'
	$(CONTROL) $(ARGS)

submit:  ## run on the nodes, and watch: make submit ARGS='-c rounds=40 --name trial'
	$(CONTROL) run $(FEDERATION) -c num-sites=$(NODES) $(ARGS)

status:  ## containers, and the nodes that are connected
	$(STACK) ps
	$(CONTROL) nodes $(FEDERATION)

results:  ## copy the folders of finished runs to runs/
	mkdir -p runs
	$(STACK) exec -T serverapp tar -C /app/gfpl/runs -cf - . | tar -C runs --no-same-owner -xf -

down:  ## end it, with its networks and volumes; first `make results`
	$(STACK) down --volumes --remove-orphans

clean:  ## remove the environment and everything the tools cached
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
