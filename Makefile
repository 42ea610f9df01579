# Everything a contributor runs; CI runs the same targets (.ci/run).
# Each target makes the virtual environment it needs from any Python 3.11 or newer, by itself.

VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
PACKAGES := $(sort $(patsubst %/__init__.py,%,$(wildcard */__init__.py)))
MODULES := $(wildcard __init__.py __main__.py cli.py)
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types imports generated generate bench integration integration-packages
.PHONY: oldest-env lock clean

oldest-env: $(OLDEST)/.complete ## the oldest supported Celery and Python, as a worker's environment

$(OLDEST)/.complete: requirements/oldest.txt pyproject.toml
	.ci/venv $(OLDEST) "$${PYTHON_OLDEST:-$$(.ci/find-python 3.10 3.11)}" requirements/oldest.txt
