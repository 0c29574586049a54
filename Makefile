# make demo        install into .venv, train VP on digits, draw samples, end in a picture
# make test        the tests (without the slow ones), two at a time
# make test-slow   the slow tests: real training
# make test-faults crashes, kills, full disks, flipped bits, payloads, several processes: all of tests/faults
# make test-peers  the comparison with other libraries, which it installs
# make test-report the report of a comparison in headless Chromium, which it installs where it may (Debian's package)
# make docs        this library's site, to be read without a network: docs/_build/html/index.html
# make test-docs   the site in headless Chromium, and its links
# make coverage    the tests once more, with a table of lines and branches that they do not reach
# make mutation    how many small faults planted in the core the tests find (long); writes docs/verification/mutation.md
# make lint        style, layers, types
# make wheel-test  build sdist -> wheel, install it in a fresh environment, run the commands in an empty folder
# make clean       remove builds and caches;  make clean-all: .venv too
#
# PYTHON=python3.12   which interpreter makes .venv (default: the first of python3, python3.13, 3.12, 3.11 that fits)
# TORCH=torch==2.12.0 which torch is installed first (default: the line in constraints.txt)
# TESTS=tests/samplers, PYTEST_ARGS="-k heun -x"   which tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
TORCH ?= $(shell grep '^torch==' constraints.txt)
WORKERS ?= 2
TESTS ?=
PYTEST_ARGS ?=
DEMO_RUN ?= demo

# pip of the environment; where Debian left ensurepip out of Python, the pip outside works on it.
PIP = PIP_DISABLE_PIP_VERSION_CHECK=1 $$($(PY) -m pip --version >/dev/null 2>&1 \
	&& echo $(PY) -m pip || echo $(PYTHON) -m pip --python $(PY))
# torch has its own line: everything else is installed under the constraints without it.
INSTALL = $(PIP) install --quiet -c $(VENV)/constraints.txt

.PHONY: help demo test test-faults test-slow test-peers test-report docs test-docs coverage mutation lint style layers types format wheel-test clean clean-all

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "== making $(VENV) with $(PYTHON)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PIP) --version >/dev/null 2>&1 || { echo "pip is missing: install Debian's python3-pip, or another Python's, and run make again" >&2; exit 1; }
	@echo "== installing $(TORCH) (a large download, once)"
	@$(PIP) install --quiet $(TORCH)
	@touch $@

$(VENV)/constraints.txt: constraints.txt $(VENV)/.made
	@grep -v '^torch==' constraints.txt > $@

# One stamp per set of extras, so that a second `make` installs nothing.
$(VENV)/.demo: pyproject.toml $(VENV)/constraints.txt
	@echo "== installing sde_gen with the extra plot"
	@$(INSTALL) -e '.[plot]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/constraints.txt
	@echo "== installing sde_gen with the extra test"
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml $(VENV)/constraints.txt
	@echo "== installing sde_gen with the extra dev"
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.demo

demo: $(VENV)/.demo
	$(PY) -m sde_gen.train sde=vp data=digits run=$(DEMO_RUN) trainer.steps=100000 trainer.max_seconds=150
	$(PY) -m sde_gen.sample run=$(DEMO_RUN) num_samples=360

test: $(VENV)/.test
	$(PY) -m pytest -n $(WORKERS) $(PYTEST_ARGS) $(TESTS)

test-faults: $(VENV)/.test
	$(PY) -m pytest -n $(WORKERS) -m "slow or not slow" --durations=10 $(PYTEST_ARGS) tests/faults

test-slow: $(VENV)/.test
	$(PY) -m pytest -m slow --durations=10 $(PYTEST_ARGS) $(TESTS)

# azula's metadata asks for torchvision, which its own code here does not need and which may not fit the torch installed.
$(VENV)/.peers: $(VENV)/.test
	@echo "== installing the peers"
	@$(INSTALL) -e '.[peers]'
	@$(INSTALL) --no-deps azula==0.11.1
	@touch $@

test-peers: $(VENV)/.peers
	$(PY) -m pytest $(PYTEST_ARGS) tests/peers

$(VENV)/.docs: pyproject.toml $(VENV)/constraints.txt
	@echo "== installing sde_gen with the extra docs"
	@$(INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.demo

# The tutorials are run once for each state of the library's sources; docs/conf.py says where they are kept.
docs: $(VENV)/.docs
	@echo "== building docs/_build/html (some minutes where tutorials have to be run)"
	OMP_NUM_THREADS=1 $(PY) -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

# Without Chromium the tests are skipped, and say so.
CHROMIUM = command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== installing chromium"; \
	apt-get install -y --no-install-recommends chromium >/dev/null || echo "chromium cannot be installed" >&2; \
	else echo "no Chromium: install Debian's package chromium to run these tests" >&2; fi; }

test-report: $(VENV)/.test
	@$(CHROMIUM)
	$(PY) -m pytest -m slow $(PYTEST_ARGS) tests/comparison/test_browser.py

test-docs: docs $(VENV)/.test
	@$(CHROMIUM)
	$(PY) -m pytest -m slow $(PYTEST_ARGS) tests/docs

coverage: $(VENV)/.test
	$(PY) -m pytest -n $(WORKERS) --cov=sde_gen --cov-branch --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

mutation: $(VENV)/.test
	$(PY) benchmarks/mutation.py --sample 12 --out docs/verification/mutation.md

lint: style layers types

style: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

layers: $(VENV)/.dev
	$(VENV)/bin/lint-imports

types: $(VENV)/.dev
	$(VENV)/bin/pyright

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Everything happens in a temporary folder, and the commands run where no checkout is in sight.
wheel-test: $(VENV)/.dev
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT INT TERM; \
	echo "== building the sdist, and the wheel from the sdist"; \
	$(PY) -m build --outdir "$$tmp/dist" . >"$$tmp/build.log" 2>&1 || { cat "$$tmp/build.log" >&2; exit 1; }; \
	(cd conf && find . -name '*.yaml' | sort) >"$$tmp/here"; \
	$(PY) -m zipfile -l "$$tmp"/dist/*.whl | sed -n 's|^sde_gen/conf/\(.*\.yaml\) .*|./\1|p' | sed 's/ .*//' | sort >"$$tmp/there"; \
	diff "$$tmp/here" "$$tmp/there" || { echo "conf/ and the wheel differ" >&2; exit 1; }; \
	echo "== installing the wheel in a fresh environment"; \
	$(PYTHON) -m venv "$$tmp/venv" >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip "$$tmp/venv"; \
	py="$$tmp/venv/bin/python"; export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	if "$$py" -m pip --version >/dev/null 2>&1; then pip="$$py -m pip"; else pip="$(PYTHON) -m pip --python $$py"; fi; \
	$$pip install --quiet $(TORCH); \
	$$pip install --quiet -c $(VENV)/constraints.txt "$$tmp"/dist/*.whl; \
	mkdir "$$tmp/empty"; cd "$$tmp/empty"; unset PYTHONPATH; export OMP_NUM_THREADS=1; \
	echo "== the commands in an empty folder"; \
	"$$py" -m sde_gen.train sde=vp run=tiny trainer.steps=4 trainer.batch_size=8; \
	"$$py" -m sde_gen.sample sampler=pc run=tiny num_samples=4 sampler.steps=3; \
	"$$py" -m sde_gen.evaluate run=tiny num_samples=8 sampler.steps=3 nll.samples=2 nll.rtol=1e-2 nll.atol=1e-2; \
	"$$tmp/venv/bin/sde-gen-train" sde=ddpm run=tiny2 trainer.steps=2 trainer.batch_size=8; \
	"$$tmp/venv/bin/sde-gen-sample" sampler=ddim run=tiny2 num_samples=4 sampler.steps=3; \
	"$$tmp/venv/bin/sde-gen-compare" data.n_test=64 budgets=[4] seeds=[0] num_samples=32 orders=false likelihood=0 workers=2; \
	mkdir -p mine/sde; cp "$$tmp"/venv/lib/python*/site-packages/sde_gen/conf/sde/vp.yaml mine/sde/mine.yaml; \
	"$$py" -m sde_gen.train --config-dir mine sde=mine run=tiny3 trainer.steps=2 trainer.batch_size=8; \
	find . -type f | sort; \
	echo "== the wheel works"

clean:
	rm -rf build dist htmlcov .coverage .pytest_cache .ruff_cache .hypothesis .import_linter_cache docs/_build docs/reference/api docs/reference/keys.md docs/reference/choices.md
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

clean-all: clean
	rm -rf $(VENV)
