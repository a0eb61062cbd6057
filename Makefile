# Every task of the project, one command each. `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= python3
PORT   ?= 8787
SEEDS  ?= 100000
INPUTS ?= 100000
JOBS   ?= 2
PARTS  ?=
SECONDS ?= 600
ENV    ?= default
venv   := .venv/bin
uv     := $(venv)/uv
# Byte code at install time: every function process of the local stack starts two to three times faster.
sync   := $(uv) pip install --quiet --compile-bytecode --require-hashes --python

.PHONY: help dev test check format simulate chaos fuzz bench soak bench-reset build deploy lock docs clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null || true

dev:  ## run the whole product on this machine, no account needed (PORT=8787, 0 = any free)
	@$(MAKE) --no-print-directory --jobs 2 .venv/command.stamp .dev/engines.stamp
	@exec $(venv)/python -m dev --port $(PORT)

test: check .dev/engines.stamp .dev/sam.stamp .dev/dynoxide.stamp .dev/stripe-cli.stamp  ## everything CI runs: checks and all tests
	$(venv)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone"
	$(venv)/python -m pytest -m alone

check: .venv/test.stamp  ## lint, types, locks, generated documents and what plans earn
	$(venv)/ruff check .
	$(venv)/ruff format --check .
	$(venv)/mypy
	$(venv)/python -m dev.packaging lock --check
	$(venv)/python -m dev.docs all --check
	$(venv)/python -m tollgate_cli plans lint

format: .venv/test.stamp  ## sort imports and lay out the code
	$(venv)/ruff check --fix .
	$(venv)/ruff format .

simulate: .venv/test.stamp  ## the ledger under every fault (SEEDS=100000 or A:B, JOBS=2)
	$(venv)/python -m tests.simulation --seeds $(SEEDS) --jobs $(JOBS)

chaos: .venv/test.stamp .dev/engines.stamp .dev/dynoxide.stamp  ## kill, cut, lose and double everything through sockets; results in bench/results
	$(venv)/python -m tests.chaos --jobs $(JOBS)

fuzz: .venv/test.stamp  ## a hundred thousand odd inputs for the data plane (INPUTS=100000)
	$(venv)/python -m tests.fuzz --inputs $(INPUTS)

bench: .venv/test.stamp .dev/engines.stamp .dev/dynoxide.stamp .dev/sam.stamp .dev/litellm.stamp  ## measure everything, against others too (PARTS=, about 15 minutes)
	PYTHONPATH=layers/core:layers/stream_runtime $(venv)/python -m bench $(PARTS)

soak: .venv/test.stamp .dev/engines.stamp .dev/dynoxide.stamp  ## an hour's worth of traffic in ten minutes (SECONDS=600)
	PYTHONPATH=layers/core:layers/stream_runtime $(venv)/python -m bench.soak --seconds $(SECONDS)

bench-reset: .venv/test.stamp .dev/dynoxide.stamp  ## what the scheduled job costs with a million users; results in bench/results
	PYTHONPATH=layers/core $(venv)/python -m bench.usage_reset

build: .venv/test.stamp .dev/sam.stamp  ## sam build, then byte code into the layers
	$(venv)/python -m dev.packaging build

deploy: build  ## sam deploy without questions (ENV=default, staging or prod)
	.dev/sam/bin/sam deploy --config-env $(ENV)

lock: .venv/test.stamp  ## pin every dependency anew, with hashes
	$(venv)/python -m dev.packaging lock

docs: .venv/test.stamp  ## write the generated pages of docs/
	$(venv)/python -m dev.docs all

clean:  ## remove environments, state and build output
	rm -rf .venv .dev .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis

# ---- environments

.venv/uv.stamp: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Tollgate needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "This Python cannot make environments. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Setting up .venv (once)"
	@$(PYTHON) -m venv --clear .venv
	@$(venv)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/dev.stamp: .venv/uv.stamp requirements/dev.txt
	@echo "Installing what the local stack needs"
	@$(sync) $(venv)/python -r requirements/dev.txt
	@touch $@

# The `tollgate` command, from the files as they stand here.
.venv/command.stamp: .venv/dev.stamp pyproject.toml
	@$(uv) pip install --quiet --offline --no-deps --python $(venv)/python --editable .
	@touch $@

.venv/test.stamp: .venv/command.stamp requirements/test.txt
	@echo "Installing what checks and tests need"
	@$(sync) $(venv)/python -r requirements/test.txt
	@touch $@

# Each in an environment of its own: they pin libraries the project uses in other versions.
.dev/engines.stamp: .venv/uv.stamp requirements/engines.txt
	@mkdir -p .dev && rm -rf .dev/engines
	@$(uv) venv --quiet --python $(venv)/python .dev/engines
	@$(sync) .dev/engines -r requirements/engines.txt
	@touch $@

.dev/sam.stamp: .venv/uv.stamp requirements/sam.txt
	@mkdir -p .dev && rm -rf .dev/sam
	@$(uv) venv --quiet --seed --python $(venv)/python .dev/sam
	@$(sync) .dev/sam -r requirements/sam.txt
	@touch $@

# What `make bench` compares with; it does without where this cannot be installed.
.dev/litellm.stamp: .venv/uv.stamp requirements/litellm.txt
	@mkdir -p .dev && rm -rf .dev/litellm
	@{ $(uv) venv --quiet --python $(venv)/python .dev/litellm && $(sync) .dev/litellm -r requirements/litellm.txt; } \
	  || { rm -rf .dev/litellm; echo "LiteLLM could not be installed; make bench leaves it out"; }
	@touch $@

# A DynamoDB engine that is exact under concurrency and counts capacity like AWS; tests fall back to ministack without it.
.dev/dynoxide.stamp: requirements/dynoxide.txt
	@mkdir -p .dev
	@if command -v npm >/dev/null 2>&1; then \
	  npm install --silent --no-audit --no-fund --no-save --prefix .dev "$$(cat requirements/dynoxide.txt)" \
	    || echo "dynoxide could not be installed; tests use ministack instead"; \
	else echo "no npm: tests use ministack instead of dynoxide"; fi
	@touch $@

# Stripe's own command, which sends the double its fixtures; the test of that is skipped without it.
.dev/stripe-cli.stamp: requirements/stripe-cli.txt
	@mkdir -p .dev
	@if command -v npm >/dev/null 2>&1; then \
	  npm install --silent --no-audit --no-fund --no-save --prefix .dev/stripe-cli "$$(cat requirements/stripe-cli.txt)" \
	    || echo "Stripe's command could not be installed; its test is skipped"; \
	else echo "no npm: the test of Stripe's command is skipped"; fi
	@touch $@
