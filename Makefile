# The tasks of developers and CI. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv system-packages lint lint-ansible lint-python lint-lua lint-docs test-lua test-page test-unit \
	test-integration test-fast test-python test-soak test-vllm test-molecule test-scenarios test test-nightly \
	demo demo-down dist bench clean

PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
SCENARIO := default
# The scenarios of Molecule, the longest first.
SCENARIOS := ingress faults default demo
# A scenario waits half of the time, so two at once keep two cores busy.
SCENARIOS_AT_ONCE := 2
BENCH := quick
# The seed of the soak is fixed here, and new each night (test-nightly). With this seed every kind of fault occurs, which a
# unit test checks.
SOAK_SEED ?= 14
NIGHTLY_SOAKS := 5
NIGHTLY_RELEASES := bookworm trixie forky
# Tests wait for nodes and nginx half of the time, so there are more workers than cores.
WORKERS := $(shell echo $$(($$(nproc) * 3 / 2)))
# Workers get whole files in the order of their names. By number of tests, the slowest file would start last, because it
# has few tests.
IN_ORDER := --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
# Debian installs nginx to /usr/sbin, which is not in every user's PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH):/usr/sbin:/sbin
export PYTHON
# Containers with systemd need root. Root must not leave files in this folder.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env --set-home env PATH="$$PATH") \
	env PYTHONDONTWRITEBYTECODE=1

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.made ## Make .venv from requirements/dev.txt

$(VENV)/.made: requirements/dev.txt
	tools/make-venv $(VENV) $<
	touch $@

system-packages: ## Install what the tests and the demo need of the system (apt, root or sudo)
	tools/system-packages integration
	tools/system-packages containers

lint: venv ## Check style, types and the generated documentation
	tools/system-packages lua
	$(MAKE) --no-print-directory --jobs --output-sync lint-ansible lint-python lint-lua lint-docs

lint-ansible:
	ansible-lint
	yamllint --strict .

lint-python:
	ruff check .
	ruff format --check .
	mypy
	PYTHONPATH=files lint-imports --no-cache

lint-lua:
	luacheck --quiet roles tests/lua

lint-docs:
	python docs/generate_configuration.py --check
	python docs/generate_completion.py --check
	python docs/generate_reliability.py --check

test-lua: ## Run the unit tests of what runs in nginx
	tools/system-packages lua
	busted

test-page: ## Run the unit tests of the status page
	tools/system-packages page
	node --test tests/page/*.test.js

test-unit: venv test-lua test-page ## Run the unit tests
	pytest --numprocesses=auto tests/unit

test-integration: venv ## Run the integration tests, with the real nginx on loopback
	tools/system-packages integration
	pytest --numprocesses=auto --dist=loadfile tests/integration

test-fast: lint test-lua test-page ## All but faults, long runs, the soak and the containers, within two minutes
	tools/system-packages integration
	pytest --numprocesses=auto --dist=worksteal -m "not fault and not slow" tests/unit tests/integration

test-python: venv test-lua test-page ## All unit and integration tests, faults too, and how much of the script they reach
	tools/system-packages integration
	pytest $(IN_ORDER) -m "not unmeasured" --cov --cov-report= tests/unit tests/integration
	coverage report --fail-under=95
	pytest $(IN_ORDER) -m unmeasured tests/unit tests/integration

test-soak: venv ## Half an hour of random faults, and long streams, in about three minutes (SOAK_SEED repeats a run)
	tools/system-packages integration
	SOAK_SEED=$(SOAK_SEED) pytest --numprocesses=2 tests/soak

$(VLLM_VENV)/.made: requirements/vllm.txt
	tools/make-venv $(VLLM_VENV) $< --no-deps
	touch $@

test-vllm: venv $(VLLM_VENV)/.made ## Real vLLM engines on the CPU, behind the product and beside the simulator (3.5 GB)
	tools/system-packages integration
	pytest tests/vllm

test-molecule: test-molecule-$(SCENARIO) ## Stand the whole stack up in containers (SCENARIO=faults; VLLM_NGINX_LB_TEST_DEBIAN=bookworm)

.PHONY: $(SCENARIOS:%=test-molecule-%)
$(SCENARIOS:%=test-molecule-%): test-molecule-%: venv dist
	tools/system-packages containers
	@# Print the failed tests and their reasons again at the end, after the lines about the removal of the containers.
	log=$$(mktemp); trap "rm -f $$log" EXIT; $(AS_ROOT) MOLECULE_COMMAND_BORDERS=false molecule test --scenario-name $* 2>&1 | \
		tee "$$log" || \
		{ grep -E " (FAILED [^-]|E   )" "$$log" | tail --bytes=1500; false; }

test-scenarios: venv dist ## All scenarios of Molecule; each shows what it did when it has ended
	tools/system-packages containers
	$(MAKE) --no-print-directory --jobs=$(SCENARIOS_AT_ONCE) --keep-going --output-sync=target $(SCENARIOS:%=test-molecule-%)

test: lint test-python test-soak test-scenarios ## Everything, the same each time
	@echo "make test: everything passed"

test-nightly: venv test-lua ## Hours: random searches and soaks, and all scenarios on Debian 12, 13 and testing
	tools/system-packages integration
	HYPOTHESIS_PROFILE=nightly pytest $(IN_ORDER) -m hypothesis tests/unit tests/integration
	for i in $$(seq $(NIGHTLY_SOAKS)); do env --unset=SOAK_SEED pytest --numprocesses=2 tests/soak; done
	for release in $(NIGHTLY_RELEASES); do \
		VLLM_NGINX_LB_TEST_DEBIAN=$$release $(MAKE) --no-print-directory test-scenarios; done
	@echo "make test-nightly: everything passed"

demo: venv ## Show one ingress and three simulated nodes at work, about a minute of load
	tools/system-packages containers
	$(AS_ROOT) demo/run

demo-down: venv ## Remove all that the demo made
	$(AS_ROOT) demo/down

dist: venv ## Build dist/vllm-nginx-lb.pyz, the script with its libraries in one file
	tools/make-dist dist/vllm-nginx-lb.pyz

bench: venv ## Measure against other balancers (BENCH=quick: about 3 minutes; BENCH=full: hours), and what a tick costs
	tools/system-packages bench
	PYTHONPATH=files python -m benchmarks $(BENCH)
	python benchmarks/tick.py

clean: ## Remove the virtual environment and the caches
	rm -rf $(VENV) $(VLLM_VENV) .venv-ansible-* .ansible .cache .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
