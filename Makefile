# `make demo` runs an agent, `make test` passes the tests; both set up all they need in .venv.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
GRAPHTON := .venv-graphton/bin
GRAPHTON_READY := .venv-graphton/.ready
MODEL ?= script:demo
MESSAGE ?= Write down what you are asked in notes.md and check the file with a command.
DEMO_DATA ?= $(CURDIR)/.cache/demo
TESTS ?= tests
# Files of tests are shared out among so many processes, the longest ones first.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); [ "$$n" -lt 4 ] && echo "$$n" || echo 4)

# The certificates of the machine, where it has any, so that a proxy's own are known too.
UV_CERTS := $(if $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt),--system-certs)
UV := $(BIN)/uv $(UV_CERTS)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format protos docs bench chaos lock clean graphton test-graphton local-model

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything into .venv, from hash-pinned locks.

$(READY): pyproject.toml requirements/dev.lock requirements/bootstrap.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed. Say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "$(PYTHON) cannot make a virtual environment; install its venv module (python3-venv)." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
	@echo "Installing the locked packages into .venv ..."
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.lock requirements/bootstrap.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src
	@touch $@

demo: $(READY) $(if $(filter local%,$(MODEL)),local-model) ## Run an agent that plans, writes a file, runs a command and answers.
	@AGENT_RUNNER_DATA_DIR="$(DEMO_DATA)" $(BIN)/agent-runner run --model "$(MODEL)" "$(MESSAGE)"

test: $(READY) ## Pass all tests (TESTS=path for some).
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

graphton: $(GRAPHTON_READY) ## Install the engine Graphton into .venv-graphton, an environment of its own.

$(GRAPHTON_READY): $(READY) pyproject.toml requirements/graphton.lock
	@test -x $(GRAPHTON)/python || $(BIN)/python -m venv --without-pip .venv-graphton
	@echo "Installing the locked packages into .venv-graphton ..."
	@$(UV) pip sync --quiet --compile-bytecode --python $(GRAPHTON)/python --require-hashes requirements/graphton.lock
	@$(UV) pip install --quiet --python $(GRAPHTON)/python --no-deps --no-build-isolation --editable .
	@$(GRAPHTON)/python -c "import graphton"
	@touch $@

test-graphton: $(GRAPHTON_READY) ## Pass the engine's tests on Graphton.
	@$(GRAPHTON)/python -m pytest tests/contract/test_agents.py tests/integration/test_graphton.py

local-model: $(READY) ## Install the runtime of the model that runs here, and pull its 1.1 GB once.
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/local-model.lock
	@AGENT_RUNNER_DATA_DIR="$(DEMO_DATA)" $(BIN)/agent-runner model pull

lint: $(READY) ## Check format, style, types, import contracts, generated code and docs.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p agent_runner -p bench -p chaos
	@$(BIN)/lint-imports --no-cache
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/generate_protos.py --check
	@for tool in tools/generate_*_reference.py; do $(BIN)/python $$tool --check || exit 1; done

format: $(READY) ## Put the code into its format.
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

protos: $(READY) ## Generate the Python messages from proto/.
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/generate_protos.py

docs: $(READY) ## Write the generated pages of docs/reference.
	@for tool in tools/generate_*_reference.py; do $(BIN)/python $$tool || exit 1; done

bench: $(READY) ## Measure beside the bare engine and Temporal's no-op (ARGS='--help').
	@$(BIN)/python -m bench $(ARGS)

chaos: $(READY) ## Break the product on purpose and count what got lost (ARGS='--help').
	@$(BIN)/python -m chaos $(ARGS)

lock: $(READY) ## Resolve the dependencies anew and pin them by hash.
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --extra docker --extra daytona --extra mongodb --extra redis --group dev requirements/dev.in pyproject.toml -o requirements/dev.lock --upgrade
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  requirements/bootstrap.in -o requirements/bootstrap.lock --upgrade
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate \
	  --extra graphton requirements/graphton.in requirements/dev.in pyproject.toml -o requirements/graphton.lock --upgrade
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate \
	  requirements/local-model.in -o requirements/local-model.lock --upgrade

clean: ## Remove what was installed and made here.
	@rm -rf .venv .venv-graphton .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
