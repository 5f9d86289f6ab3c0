# Everything here works on a machine that has only Python (3.11 or newer) and make.
# The first run of a target makes a virtual environment and installs into it; later ones start at once.

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
MODEL ?= headscope-demo
OUT ?= report
WORKERS ?= 2
PYTEST_ARGS ?=

# With a Chromium on the PATH (Debian: apt-get install chromium) the browser tests run too.
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
NOT_RUN := $(if $(CHROMIUM),not slow and not gpu and not hub,not slow and not gpu and not hub and not browser)

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help report test lint bench screenshots clean distclean

help:
	@echo 'make report     one offline HTML page about the demo model (MODEL=name-or-path OUT=folder)'
	@echo 'make test       the tests (PYTEST_ARGS="-k entropy", WORKERS=2)'
	@echo 'make lint       ruff, mypy and vulture'
	@echo 'make bench      the benchmarks'
	@echo 'make screenshots  the pictures of the views and the report in docs/images/views (needs Chromium)'
	@echo 'make clean      remove reports, caches and builds'
	@echo 'make distclean  also remove the virtual environment'
	@echo
	@echo 'PYTHON=python3.12   the Python to start from (3.11 or newer)'
	@echo 'PIP_ARGS="..."      more arguments for pip install. On Linux pip takes the CUDA build of PyTorch, some'
	@echo '                    gigabytes; --extra-index-url with the address of the CPU wheels, which'
	@echo '                    PyTorch'"'"'s own installation page gives, makes it a small download.'

report: $(VENV)/.installed
	$(BIN)/headscope report $(MODEL) --out $(OUT)
	@echo 'Open in a browser:' $(abspath $(OUT))/*.html

# One thread a worker: two workers with two threads each would fight over two cores. A file's tests stay together, so
# that what they share (a measured model, a browser) is made once.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m '$(NOT_RUN)' $(PYTEST_ARGS)
	@$(if $(CHROMIUM),:,echo 'The browser tests were SKIPPED: there is no chromium on the PATH (Debian: apt-get install chromium).')

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

bench: $(VENV)/.installed-dev
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

screenshots: $(VENV)/.installed-dev
	$(BIN)/python docs/screenshots.py

clean:
	rm -rf report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headscope needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.python
	@echo 'Installing headscope into $(VENV) (a few minutes the first time)...'
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.python
	@echo 'Installing headscope and its development tools into $(VENV) (a few minutes the first time)...'
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed
