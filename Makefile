# SPDX-License-Identifier: GPL-3.0-or-later
# Everything runs from .venv, which is made on first use and again when the dependencies change. No system package
# is installed. Paths here are relative, so the checkout may lie anywhere.

SHELL := /bin/sh
# The interpreter for .venv: the first of these that is new enough. PYTHON=... names one.
PYTHON :=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.14 python3.13 python3.12 python3.11 python3)
CONFIG := etc/lmtp-proxy.yml
# For pytest: `make test ARGS="-k reload -x"` runs just these, without linters and coverage. For bench: see --help.
ARGS :=

# Most tests wait most of the time: four at once also on two cores. Those of one file share servers, so they stay
# together. tests/packaging changes the machine, so it has it for itself.
PARALLEL := -n $(shell cores=$$(nproc 2>&1) || cores=4; echo $$((cores > 4 ? cores : 4))) --dist loadfile

PY := .venv/bin/python
STAMP := .venv/made-for
# Each of these is covered to the last branch by its own unit tests alone, tests/unit/<folder>/test_<module>.py.
COVERED := wire/reply wire/envelope wire/dot_stuffing wire/events wire/command_lines wire/reply_queue wire/protocol \
    wire/proxy_header wire/client wire/xtext wire/xforward routing/keys routing/table routing/static_table routing/routing

.PHONY: help demo run test bench lint coverage clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo           see it work: two mail stores, the proxy, one user moves (some seconds)'
	@echo 'make test           linters, type check, all tests; ARGS="-k reload" for some of them'
	@echo 'make run            the proxy in the foreground; CONFIG=file, default $(CONFIG)'
	@echo 'make bench          how fast it is beside HAProxy and Dovecot (12 minutes); ARGS=--quick: a minute'
	@echo 'make lint           ruff and mypy alone'
	@echo 'make coverage       the modules that must be covered to the last branch'
	@echo 'make clean          remove .venv and all caches'

demo: $(STAMP)
	@$(PY) -m lmtp_proxy.demo

run: $(STAMP)
	@exec $(PY) bin/lmtp-proxy -c "$(CONFIG)"

ifeq ($(strip $(ARGS)),)
test: $(STAMP)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory coverage
	$(PY) -m pytest $(PARALLEL) --ignore=tests/packaging
	$(PY) -m pytest tests/packaging
else
test: $(STAMP)
	$(PY) -m pytest $(ARGS)
endif

bench: $(STAMP)
	@$(PY) -m bench $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m ruff format --check --quiet
	$(PY) -m mypy

# Data files go to a directory of this run, so that two runs at once do not mix theirs.
coverage: $(STAMP)
	@data=$$(mktemp -d) && trap 'rm -rf "$$data"' EXIT && failed= && \
	for module in $(COVERED); do \
	    echo "branch coverage of lmtp_proxy/$$module.py by tests/unit/$${module%/*}/test_$${module##*/}.py"; \
	    export COVERAGE_FILE="$$data/$${module##*/}"; \
	    $(PY) -m coverage run --include="lmtp_proxy/$$module.py" -m pytest -q -p no:cacheprovider \
	        $$(ls tests/unit/$${module%/*}/test_$${module##*/}.py tests/unit/$${module%/*}/test_$${module##*/}_*.py 2> /dev/null) > "$$data/out" 2>&1 || { cat "$$data/out"; failed="$$failed $$module"; continue; }; \
	    $(PY) -m coverage report --fail-under=100 > "$$data/out" 2>&1 || { cat "$$data/out"; failed="$$failed $$module"; }; \
	done; \
	[ -z "$$failed" ] || { echo "failed, or not covered to the last branch by its own tests:$$failed"; exit 1; }

clean:
	rm -rf .venv .venv.lock .pybuild build bench/build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One shell: it holds a lock, so that two runs at once make one .venv, and the second finds it made. The stamp holds
# the checksum of what was installed for, since a fresh clone gives every file the same time.
$(STAMP): setup.py pyproject.toml
	@set -u; \
	if command -v flock >/dev/null; then exec 9>.venv.lock && flock 9 || exit 1; fi; \
	wanted=$$(cat setup.py pyproject.toml | cksum); \
	works() { $(PY) -c 'import pip' 2>/dev/null; }; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" = "$$wanted" ] && works; then touch $(STAMP); exit 0; fi; \
	if ! works; then \
	    found= no_venv= old=; \
	    for python in $(CANDIDATES); do \
	        version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	        "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old="$$python is $$version"; continue; }; \
	        "$$python" -c 'import venv, ensurepip' 2>/dev/null || { no_venv="$${no_venv:-$$version}"; continue; }; \
	        found=$$python; break; \
	    done; \
	    if [ -z "$$found" ] && [ -n "$$no_venv" ]; then \
	        echo "Python $$no_venv is here without its venv module: apt install python$$no_venv-venv" >&2; exit 1; \
	    elif [ -z "$$found" ]; then \
	        echo "Python 3.11 or newer is needed ($${old:-none found}): apt install python3.11 python3.11-venv" >&2; exit 1; \
	    fi; \
	    echo "making .venv with $$found ($$("$$found" --version 2>&1))"; \
	    rm -rf .venv && "$$found" -m venv .venv || exit 1; \
	fi; \
	echo "installing what lmtp-proxy and its tests need into .venv"; \
	$(PY) -m pip install -qq --disable-pip-version-check -e '.[test]' && echo "$$wanted" > $(STAMP)
