# Every target works from a fresh clone: the first one to run makes `.venv` from the lock file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
UV_VERSION := 0.13.9
AUDIT_VERSION := 2.10.1
SBOM ?= build/secateur.cdx.json

# uv reads its own variable, with commas; where pip is told to look for wheels, uv shall look too.
comma := ,
empty :=
space := $(empty) $(empty)
UV_ENV = $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))",)

# Tests share two processes; those that measure time run after them, alone.
TOGETHER := -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help run test test-slow up down env lint audit sbom bench-overhead bench-engine bench-recovery bench-accuracy bench-scale bench-ab bench-predict bench-speed bench-registry bench-gate bench-cluster bench-sweep bench-monitor

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: $(STAMP) ## Start the stack, prune the sample model, print the result, stop the stack
	@$(BIN)/secateur demo

up: $(STAMP) ## Start the local stack: Airflow, MLflow, S3; prints their addresses
	@$(BIN)/secateur up

down: $(STAMP) ## Stop the local stack; its data stays in .stack
	@$(BIN)/secateur down

env: $(STAMP) ## Write fresh secrets for docker/compose.yaml to docker/.env, unless it is there
	@$(BIN)/secateur env docker/.env

test: $(STAMP) ## Run the tests, but for the slow ones
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not alone" $(TOGETHER)
	@$(BIN)/python -m pytest -q -m "alone and not slow"

test-slow: $(STAMP) ## Run the slow tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not alone" $(TOGETHER)
	@$(BIN)/python -m pytest -q -m "slow and alone"

lint: $(STAMP) ## Check format, lint, types and Dockerfiles
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/hadolint docker/*.Dockerfile

# Of what it cannot look up, the auditor would say nothing without --strict.
audit: ## Compare the lock file with the known advisories; asks the network, so no part of the tests
	@$(PYTHON) -m venv --clear build/audit
	@build/audit/bin/pip install -q pip-audit==$(AUDIT_VERSION) \
		&& build/audit/bin/pip-audit -r requirements.lock --disable-pip --no-deps --strict --progress-spinner off \
		|| { echo "The audit did not end well: an advisory is said above, or what could not be looked up, for which it needs the network."; exit 1; }

sbom: $(STAMP) ## List what the lock file holds, as CycloneDX, the same bytes every time, into build; SBOM=<file> goes elsewhere
	@mkdir -p $(dir $(SBOM))
	@$(BIN)/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml --output-reproducible -o $(SBOM)

bench-overhead: $(STAMP) ## Work against overhead per step of the last run on the running stack; RUN=<id> picks another
	@$(BIN)/python benchmarks/overhead.py $(if $(RUN),--run "$(RUN)",)

bench-ab: $(STAMP) ## Whether comparisons of latency hold what they claim, into benchmarks/results; RUNS=<n>, JOBS=<n>, ROWS='"3% slower" ...'
	@$(BIN)/python -W ignore -m benchmarks.ab $(if $(RUNS),--runs $(RUNS),) $(if $(JOBS),--jobs $(JOBS),) $(if $(ROWS),--rows $(ROWS),)

bench-scale: $(STAMP) ## How analysis and surgery grow with a decoder's layers, up to a cut of a billion parameters
	@$(BIN)/python -W ignore benchmarks/scale.py

bench-predict: $(STAMP) ## Predicted against measured speedup of whole models, into benchmarks/results; THREADS=<n>, MODELS="ResNet-50 ..."
	@$(BIN)/python -W ignore -m benchmarks.predict $(if $(THREADS),--threads $(THREADS),) $(if $(MODELS),--models $(MODELS),)

bench-speed: $(STAMP) ## What pruning buys on this machine, into benchmarks/results; ROWS="resnet-half ...", THREADS=<n>
	@$(BIN)/python -W ignore -m benchmarks.speed $(if $(THREADS),--threads $(THREADS),) $(if $(ROWS),--rows $(ROWS),)

bench-registry: $(STAMP) ## Processes that promote and roll back one model at random, on the running stack; PROCESSES=<n>, SECONDS=<n>
	@$(BIN)/python -W ignore -m benchmarks.registry $(if $(PROCESSES),--processes $(PROCESSES),) $(if $(SECONDS),--seconds $(SECONDS),)

bench-gate: $(STAMP) ## What the gate lets pass: simulated models that are too bad, or equal, into benchmarks/results; RULES="accuracy ..."
	@$(BIN)/python -W ignore -m benchmarks.gate $(if $(RULES),--rules $(RULES),)

bench-monitor: $(BENCH_STAMP) ## Watching what serves, on the running stack with the sample promoted, into benchmarks/results; DATA=<folder>, PARTS="shifts ...", SHIFT='"contrast 3" ...'
	@$(BIN)/python -W ignore -m benchmarks.monitor $(if $(DATA),--data "$(DATA)",) $(if $(PARTS),--parts $(PARTS),) $(if $(SHIFT),--shift $(SHIFT),)

bench-cluster: $(STAMP) ## Many prunings at once, without their science, into benchmarks/results; RUNS=<n>, MODELS=<n>, MINUTES=<n>
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.cluster \
		$(if $(RUNS),--runs $(RUNS),) $(if $(MODELS),--models $(MODELS),) $(if $(MINUTES),--minutes $(MINUTES),)

bench-sweep: $(STAMP) ## A sweep of six recipes on one worker and on two; EPOCHS=<n> of recovery, WORKERS="2 1"
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.sweep \
		$(if $(EPOCHS),--epochs $(EPOCHS),) $(if $(WORKERS),--workers $(WORKERS),)

bench-engine: $(BENCH_STAMP) ## The engine beside a peer, into benchmarks/results; DATA=<folder> for trained models, PARTS="resnet20 ..." for some
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -W ignore -m benchmarks.engine \
		$(if $(DATA),--data "$(DATA)",) $(if $(PARTS),--parts $(PARTS),)

bench-recovery: $(BENCH_STAMP) ## Recovery's training loop beside others, into benchmarks/results; DATA=<folder>, ROWS="resnet20 ...", ROUNDS=<n>
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -W ignore -m benchmarks.recovery \
		$(if $(DATA),--data "$(DATA)",) $(if $(ROWS),--rows $(ROWS),) $(if $(ROUNDS),--rounds $(ROUNDS),)

bench-accuracy: $(BENCH_STAMP) ## What recipes keep of accuracy, into benchmarks/results; DATA=<folder>, SCALE=cpu|cpu-long|gpu, ROWS="resnet20-structured ...", JOBS=<n>
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -W ignore -m benchmarks.accuracy \
		$(if $(DATA),--data "$(DATA)",) $(if $(SCALE),--scale $(SCALE),) $(if $(ROWS),--rows $(ROWS),) $(if $(JOBS),--jobs $(JOBS),)

# torch stays the one of the lock file: what the extra needs beyond it comes without its own dependencies.
$(BENCH_STAMP): $(STAMP) pyproject.toml
	@$(BIN)/python -m pip install -q --no-deps $$($(BIN)/python -c "import tomllib; \
		print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])")
	@touch $@

# The stamp comes last: an interrupted installation is done again.
$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q uv==$(UV_VERSION) \
		&& $(UV_ENV) VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q -r requirements.lock \
		&& VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --no-deps -e . \
		|| { echo "uv could not install; trying pip, which takes minutes."; \
			$(BIN)/python -m pip install -q -r requirements.lock && $(BIN)/python -m pip install -q --no-deps -e .; }
	@touch $@
