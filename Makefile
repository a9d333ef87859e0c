# make sweep: from nothing to curves on what this machine has. make test: the test suite. make bench: the cases of the
# gate under pytest-benchmark. Each makes .venv first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# torch's build follows the machine: where a GPU answers, the newest build for it; elsewhere the version that the
# tests are pinned to. Override with e.g. make sweep TORCH=torch==2.11.0
GPU   := $(shell nvidia-smi -L 2>/dev/null | head -n 1)
TORCH ?= $(if $(GPU),torch,torch==2.13.0)
# The pins belong to the machine without a GPU: on the others torch brings the triton it was built with.
PINS  ?= $(if $(GPU),,-c constraints.txt)

comma := ,
# The report is tested in a Chromium where there is one.
CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
EXTRAS   := test,lint$(if $(CHROMIUM),$(comma)browser)

PIP       := $(BIN)/python -m pip install -q --disable-pip-version-check $(PINS)
INSTALLED := $(VENV)/.installed
TESTABLE  := $(VENV)/.installed-for-tests

.PHONY: sweep test bench lint types check clean

sweep: $(INSTALLED)
	$(BIN)/attnbench sweep quick

test: $(TESTABLE)
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(TESTABLE)
	$(BIN)/python -m pytest benchmarks/

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TESTABLE)
	$(BIN)/mypy

check: test lint types

clean:
	rm -rf $(VENV) build dist *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnbench needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) -e .
	touch $@

$(TESTABLE): $(INSTALLED)
	$(PIP) -e '.[$(EXTRAS)]'
	touch $@
