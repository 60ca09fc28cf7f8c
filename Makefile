# `make` shows what there is. Everything lives in .venv; nothing needs root or a server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help install run test lint format faults bench lock audit clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with the locked dependencies

$(STAMP): requirements-dev.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 install")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test "$$($(BIN)/uv --version 2>/dev/null | cut -d' ' -f2)" = $(UV_VERSION) || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements-dev.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

run: install ## Serve: web, worker and beat together; Ctrl-C stops them
	@$(BIN)/python -m accountsvc prepare
	@PATH="$(CURDIR)/$(BIN):$$PATH" exec $(BIN)/honcho start

test: install ## Run all tests on real PostgreSQL, Redis protocol, SMTP, S3 protocol and worker processes
	$(BIN)/pytest $(PYTEST_OPTIONS)

lint: install ## Check format, style, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy accountsvc worker
	$(BIN)/lint-imports

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

faults: install ## Inject faults for up to ten minutes and check what was promised
	$(BIN)/python -m tests.faults $(FAULTS_OPTIONS)

bench: install ## Measure, as ratios against a reference in the same run
	$(BIN)/python -m bench

lock: install ## Lock the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" setup.cfg -o requirements.lock $(LOCK_OPTIONS)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --extra dev -c requirements.lock setup.cfg -o requirements-dev.lock $(LOCK_OPTIONS)

audit: install ## Look the locked dependencies up in a vulnerability database
	@$(BIN)/pip-audit --require-hashes --disable-pip -r requirements.lock || \
	  { echo "make audit: findings above, or no vulnerability data could be had: this was no clean audit" >&2; exit 1; }

clean: ## Remove .venv and caches; instance/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
