# wherry: every command there is. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup up down demo images status logs test test-all check format docs lock bench sim sim-long chaos chaos-long uploads-long fuzz frameworks \
	compose-up compose-smoke compose-down clean

PY := .venv/bin/python

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv with everything that tests and checks need
	@sh scripts/setup.sh dev

up: stack-env ## start wherry on this machine and wait until it takes jobs
	@$(PY) -m infra.local up

down: stack-env ## stop it; data stays under .wherry
	@$(PY) -m infra.local down

demo: stack-env ## run a real job on it: a container where Docker answers, else a plain process
	@if [ "$$INSTALL_DOCKER" = 1 ]; then sh infra/docker/install.sh; fi
	@$(PY) -m infra.local demo

images: ## our own images for jobs: filters, training, serving
	@infra/docker/build-base.sh
	@infra/docker/build-filters.sh && infra/docker/build-training.sh && infra/docker/build-serving.sh

status: stack-env ## what of it runs
	@$(PY) -m infra.local status

logs: stack-env ## the end of its logs
	@$(PY) -m infra.local logs

test: setup ## tests, but for the slow ones; says what it skips and why
	@$(PY) tests/run.py

test-all: setup ## all tests
	@$(PY) tests/run.py --slow

check: setup ## format, lint, types, import contracts, dependencies, made documents
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports
	.venv/bin/deptry .
	$(PY) docs/generate.py --check

format: setup ## put the code into its format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: setup ## write the documents that are made from code
	$(PY) docs/generate.py

lock: setup ## resolve all dependencies anew and write the lock files
	@sh scripts/lock.sh

bench: setup ## measure, and write the results page
	$(PY) -m benchmarks.run

sim: setup ## the protocol's model, its mutants, and a simulated fleet of 1,000 nodes and 20,000 jobs
	$(PY) -m tests.simulation --nodes 1000 --jobs 20000
	CI=1 $(PY) -m pytest -q tests/model

sim-long: setup ## the same with 200,000 histories and 20 fleets; hours
	$(PY) -m tests.simulation --nodes 1000 --jobs 20000 --runs 20
	WHERRY_MODEL_HISTORIES=200000 $(PY) -m pytest -q --timeout 0 tests/model

chaos: setup ## kill, stop and cut what runs under 500 jobs, and check that nothing is lost
	$(PY) -m tests.chaos --faults kill,stop,mongo --jobs 500
	$(PY) -m pytest -q tests/chaos/test_network.py

chaos-long: setup ## the same with 10,000 jobs; hours
	$(PY) -m tests.chaos --faults kill,stop,mongo --jobs 10000 --patience-s 43200
	$(PY) -m pytest -q tests/chaos

fuzz: setup ## a million odd zips (and forms, ranges) for the parsers that read what strangers send; minutes
	$(PY) -m tests.fuzz --executions 1000000

uploads-long: setup ## cut 200 uploads at random points, and check that nothing is half-stored; 15 minutes
	$(PY) -m tests.chaos.uploads --uploads 200

# As pip takes them. `torch` alone is the build for CUDA, of gigabytes; PIP_EXTRA_INDEX_URL may name an index that has others.
TENSORFLOW ?= tensorflow-cpu==2.21.0 tqdm==4.70.1
TORCH ?= torch==2.13.0
frameworks: setup ## train and serve with the real TensorFlow and PyTorch; builds their images first, gigabytes
	@infra/docker/build-base.sh
	@EXTRA="$(TENSORFLOW)" infra/docker/build-training.sh wherry/training-tensorflow
	@EXTRA="$(TORCH)" infra/docker/build-training.sh wherry/training-torch
	@BASE=wherry/training-tensorflow infra/docker/build-serving.sh wherry/serving-tensorflow
	$(PY) -m pytest tests/e2e/test_frameworks.py

compose-up: setup ## the same stack in containers
	@$(PY) -m infra.compose up

compose-smoke: setup ## run the main job through the containers and check it
	@$(PY) -m infra.compose smoke

compose-down: setup ## stop the containers; data stays in volumes
	@$(PY) -m infra.compose down

clean: ## remove caches; .venv and .wherry stay
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: stack-env
stack-env:
	@sh scripts/setup.sh stack
