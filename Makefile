# What a developer does with Limpet. Every target makes its own virtual environment (.venv) when that is missing, and
# installs again only when pyproject.toml changes. Works with GNU make 3.81 (macOS) and later.

PYTHON  ?= python3
SECONDS ?= 60
CLASS   ?=
ARGS    ?=

VENV := .venv
BIN  := $(VENV)/bin
BARE := .venv-bare
PIP  := -m pip --quiet --quiet --disable-pip-version-check --no-input --timeout 60

# What `make bare` installs beside the project itself: the extra `tools`, without what the project depends on.
TOOLS := import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["tools"], sep="\n")

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test bare lint format fuzz bench clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12  the interpreter to make $(VENV) with; 3.11 or later"
	@echo "  ARGS='...'         more arguments for demo, test (pytest), fuzz and bench"

demo: $(VENV)/installed-demo  ## a gateway's day on real dialogues, killed at random moments; nothing may be missing
	@$(BIN)/limpet-store demo $(ARGS)

# Two workers for the two cores of a small machine: most tests wait for a disk or for another process.
test: $(VENV)/installed-test  ## the whole test suite, under six minutes on two cores
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bare: $(BARE)/installed  ## the tests of engine and store with no optional package installed
	@$(BARE)/bin/python -m pytest -n 2 --dist worksteal tests/engine tests/store $(ARGS)

lint: $(VENV)/installed-dev  ## formatting, ruff, mypy --strict
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/installed-dev  ## let ruff format the sources and fix what it can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

fuzz: $(VENV)/installed-test  ## the fuzzers: SECONDS=60 in all, CLASS=one of them
	@$(BIN)/python -m fuzz --seconds $(SECONDS) $(if $(CLASS),--class $(CLASS)) $(ARGS)

bench: $(VENV)/installed-bench  ## the benchmarks, beside sqlite3 and LMDB
	@$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove what the other targets made, virtual environments included
	rm -rf $(VENV) $(BARE) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find engine store tests fuzz benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# The demo should not wait for the download of a type checker, so each purpose has its own extra and its own stamp.
$(VENV)/installed-%: pyproject.toml $(BIN)/python
	@echo "installing limpet[$*] into $(VENV)"
	@$(BIN)/python $(PIP) install --editable '.[$*]' || { $(NOT_INSTALLED); }
	@touch $@

$(BARE)/installed: pyproject.toml $(BARE)/bin/python
	@echo "installing limpet into $(BARE), without the packages that it can use"
	@$(BARE)/bin/python -c '$(TOOLS)' >$(BARE)/tools.txt
	@$(BARE)/bin/python $(PIP) install --no-deps --editable . || { $(NOT_INSTALLED); }
	@$(BARE)/bin/python $(PIP) install --requirement $(BARE)/tools.txt || { $(NOT_INSTALLED); }
	@touch $@

NOT_INSTALLED = echo "pip could not install into $(@D); its reason stands above." >&2; \
  echo "It needs a package index: a network, or one of your own (pip config set global.index-url URL)." >&2; \
  echo "If $(@D) was not made by make, or is broken, \`make clean\` lets make begin anew." >&2; exit 1

# .venv/bin/python is a symbolic link: make dates it by what it points to, long before pyproject.toml, and misses it when
# the interpreter behind it has gone. Hence --clear. Debian has the module venv without ensurepip, and a virtual
# environment without pip is of no use.
$(BIN)/python $(BARE)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here; name another one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Limpet needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: its modules venv and ensurepip are not installed." >&2; \
	  echo "On Debian and Ubuntu:  apt install python3-venv" >&2; exit 1; }
	@echo "making $(@D:/bin=) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(@D:/bin=)
