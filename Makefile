# Two commands do everything on a fresh machine that has Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS ?= 2
# Tests start Python hundreds of times: where the environment forbids compiled modules, each start compiles all of qconvd again.
test crashes: export PYTHONDONTWRITEBYTECODE :=
# Named, as collecting all other tests just to leave them out takes a minute.
CRASHES := $(shell grep -rl --include='*.py' 'pytest.mark.crash' tests)

.PHONY: help demo test crashes check run format docs clean

help:            ## What can be done here
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo    ## Set up, start the daemon, drop a real model into the watched folder, show what comes out
	@$(BIN)/python demo/demo.py

test: $(VENV)/.test    ## All tests, with real models and other people's readers
	@echo "A daemon killed at every call that changes the disk (these fork, so they come first, in small processes)"
	@# These wait for the disk a quarter of their time: kernels that other tests will need are compiled meanwhile.
	@nice -n 19 $(BIN)/qconvd doctor --warm >/dev/null 2>&1 & warm=$$!; \
		$(BIN)/python -m pytest -q -n $(JOBS) --dist load -m crash $(CRASHES); passed=$$?; \
		kill $$warm 2>/dev/null; wait $$warm 2>/dev/null; exit $$passed
	@echo "Everything else"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist load -m "not crash" --durations=40

crashes: $(VENV)/.test ## Kill the daemon and its workers at every single point, not at some (half an hour)
	@QCONVD_CRASHES=all $(BIN)/python -m pytest -q -n $(JOBS) --dist load -m crash $(CRASHES)

check: $(VENV)/.test   ## ruff and strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

run: $(VENV)/.demo     ## Start the daemon with ./config.yaml
	@mkdir -p inbox
	@$(BIN)/qconvd run

format: $(VENV)/.test  ## Format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

docs: $(VENV)/.test    ## Write the generated reference pages again
	@$(BIN)/python -m qconvd.cli.reference

clean:           ## Remove the environment, caches and the demo's files
	rm -rf $(VENV) .cache .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "qconvd needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (once; about 0.5 GB, a minute or two)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing qconvd and the test equipment (about 2.3 GB, once)"
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.demo
