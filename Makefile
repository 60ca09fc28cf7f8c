# `make` shows what there is. Everything lives in .venv; nothing needs root or a server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" setup.cfg

.DEFAULT_GOAL := help
.PHONY: help install run dev test lint format faults bench lock audit clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with the locked dependencies

# uv installs many times faster than pip; but it reads no pip.conf, so where only pip knows the index,
# pip does it.
$(STAMP): requirements-dev.lock setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version_info[:2])'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@awk '/^[a-z]/ {wanted = /^uv==/} wanted' requirements-dev.lock > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r $(VENV)/uv.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes requirements-dev.lock || \
	  $(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --offline -e .
	@# Where Python may not write bytecode, each of the many processes would compile all libraries again.
	@test -z "$$PYTHONDONTWRITEBYTECODE" || PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import accountsvc.api, accountsvc.cli, accountsvc.pages, celery.bin.celery, hypothesis, pytest" || true
	@# An image worker may write no file, so it would compile Pillow at each upload.
	@$(BIN)/python -m compileall -q $(VENV)/lib/python3*/site-packages/PIL
	@touch $@

run: install ## Serve: web, worker and beat together; Ctrl-C stops them
	@exec $(BIN)/python -m accountsvc run --prepare

dev: install ## The same, and the web process starts anew when code changes (the worker does not)
	@GUNICORN_CMD_ARGS="--reload $$GUNICORN_CMD_ARGS" exec $(BIN)/python -m accountsvc run --prepare

test: install ## Run all tests, on real servers from wheels and in a browser
	@$(BIN)/python -m tests.support.browser
	$(BIN)/pytest $(PYTEST_OPTIONS)

lint: install ## Check format, style, types, import directions, that tests can be collected, and the files for deployment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# mypy keeps one core busy; meanwhile the other one collects the tests, and compiles them for pytest.
	@$(BIN)/pytest -n 0 --collect-only -q > $(VENV)/collected.txt 2>&1 & collecting=$$!; \
	  echo "$(BIN)/mypy accountsvc worker"; $(BIN)/mypy accountsvc worker; checked=$$?; \
	  wait $$collecting || { tail -n 20 $(VENV)/collected.txt >&2; exit 1; }; exit $$checked
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/kubernetes-validate --strict --quiet docs/deploy/kubernetes/accountsvc.yaml

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

faults: install ## Inject every fault many times, drain a long backlog, kill the worker ten times, draw 100,000 addresses
	TEST_FAULTS=long $(BIN)/pytest tests/faults $(PYTEST_OPTIONS)
	TEST_ADDRESS_EXAMPLES=100000 $(BIN)/pytest tests/accounts/test_addresses_drawn.py $(PYTEST_OPTIONS)
	TEST_KILLS=10 $(BIN)/pytest -n 0 tests/purge/test_kill.py $(PYTEST_OPTIONS)

bench: install ## Measure, as ratios against a reference in the same run, and attack; BENCH_TIMES=20 measures longer
	$(BIN)/python -m bench $(BENCH_NAMES)

lock: install ## Lock the dependencies anew; LOCK_OPTIONS=--upgrade takes newer releases
	$(COMPILE) -o requirements.lock $(LOCK_OPTIONS)
	$(COMPILE) --extra dev -c requirements.lock -o requirements-dev.lock $(LOCK_OPTIONS)

# pip-audit calls it clean when it got no data. So a release with known vulnerabilities is asked for
# first: if it is not reported, nothing was audited.
audit: install ## Look the locked dependencies up in a vulnerability database
	@echo "jinja2==2.4.1" > $(VENV)/known-vulnerable.txt
	@$(BIN)/pip-audit --progress-spinner off --disable-pip --no-deps -r $(VENV)/known-vulnerable.txt $(AUDIT_OPTIONS) 2>/dev/null | grep -qE 'PYSEC-|GHSA-|CVE-' || \
	  { echo "make audit: NOT AUDITED: there was no vulnerability data (a release known to be vulnerable was not reported)" >&2; exit 2; }
	$(BIN)/pip-audit --progress-spinner off --strict --disable-pip --require-hashes -r requirements.lock $(AUDIT_OPTIONS)

clean: ## Remove .venv and caches; instance/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
