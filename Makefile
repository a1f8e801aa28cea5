# `make demo` and `make test` do all their own set-up and are quick when run again.
# ARGS passes through: make demo ARGS="--quick", make test ARGS="tests/domain -k blending".

PYTHON ?= python3
BIN := .venv/bin
HELD := kasmina/domain/*,kasmina/history.py,kasmina/service.py,kasmina/infra/*

# Without a PostgreSQL server its tests are skipped, and the store cannot be held to all its branches.
SERVER := $(wildcard /usr/lib/postgresql/*/bin/postgres)
LIMIT := $(if $(SERVER),--fail-under=100)

# The whole suite runs on all cores. Each worker takes about a gigabyte.
PARALLEL := --numprocesses=logical --maxprocesses=8 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test fast check lint types imports package examples clean setup

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Grow a small network on the digits, under gates
	@$(PYTHON) tools/bootstrap.py demo
	@$(BIN)/kasmina demo $(ARGS)

setup:
	@$(PYTHON) tools/bootstrap.py dev

# A selection of tests cannot meet the coverage limit, so only the whole suite is held to it.
test: setup ## Run all tests; domain, service and store are held at 100 % branch coverage
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=
	@$(BIN)/coverage report --format=total | sed 's/.*/coverage of the package: &%/'
	$(BIN)/coverage report --include='$(HELD)' $(LIMIT)
endif

fast: setup ## Run the tests of the day: no slow ones, no coverage
	$(BIN)/python -m pytest -m "not slow" $(if $(ARGS),,$(PARALLEL)) $(ARGS)

lint: setup ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup ## Check types
	$(BIN)/mypy

imports: setup ## Check the direction of imports
	$(BIN)/lint-imports

package: setup ## Build the wheel and try it in a clean environment
	$(BIN)/python tools/check_wheel.py

examples: setup ## Run every example, made tiny, in a clean environment
	$(BIN)/python tools/run_examples.py

check: test lint types imports package examples ## Everything that must hold

clean: ## Remove what was made, the environment too
	rm -rf .venv dist build .coverage .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache
	find kasmina migrations tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
