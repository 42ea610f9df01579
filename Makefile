# Everything a contributor runs; CI runs the same targets (.ci/run).
# Each target makes the virtual environment it needs by itself, from any Python 3.11 or newer: PYTHON=... names one.

VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
# The rules as they are shipped: by the defaults, whatever this directory's celeryscope.toml says.
RULES := $(BIN)/python -m celeryscope rules build --config /dev/null --out dashboards/generated
BOARDS := $(BIN)/python -m celeryscope dashboards build --config /dev/null --out dashboards/generated \
	--sketches docs/img/boards
PYTEST ?= $(BIN)/python -m pytest
# Most tests wait for processes; those of one file share theirs.
SIDE_BY_SIDE ?= -n auto --maxprocesses 4 --dist loadfile
# What breaks, floods or attacks what it starts for itself.
FAULTS := tests/chaos tests/security
# What `make integration-packages` installs, by Debian's names; the second line is for `make compose-test`.
DEBIAN_PACKAGES := redis-server rabbitmq-server prometheus prometheus-alertmanager postgresql chromium systemd faketime \
	docker.io mmdebstrap iproute2 iptables

PACKAGES := $(sort $(patsubst %/__init__.py,%,$(wildcard */__init__.py)))
CODE := $(PACKAGES) $(wildcard __init__.py __main__.py cli.py docs/generate.py docs/mkdocs_hooks.py)

.DEFAULT_GOAL := help
.PHONY: help demo stack test check format format-check lint types imports sizes generated generate docs bench \
	bench-check integration integration-packages compose-test soak sbom audit oldest-env lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-22s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.complete ## the whole system on this machine: example app, workers, beat, monitor
	$(BIN)/python -m celeryscope demo

stack: $(VENV)/.complete ## the services of docker-compose.yml as plain processes, where there is no Docker
	$(BIN)/python -m celeryscope demo --stack

test: $(VENV)/.complete ## all tests that need Python packages alone; TESTS=path narrows them
	$(PYTEST) $(SIDE_BY_SIDE) -m "not system and not soak" $(or $(TESTS),tests)

check: format-check lint types imports sizes generated docs test ## what must hold before a commit

format: $(VENV)/.complete ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

format-check: $(VENV)/.complete
	$(BIN)/ruff format --check .

lint: $(VENV)/.complete
	$(BIN)/ruff check .

# The root of the clone is the package `celeryscope`, whatever the clone is called: mypy gets to see it by that name.
types: $(VENV)/.complete ## mypy --strict
	@mkdir -p .types && ln -sfn .. .types/celeryscope
	MYPYPATH=.types $(BIN)/mypy $(addprefix .types/celeryscope/,$(CODE))

imports: $(VENV)/.complete ## the import contracts of pyproject.toml
	$(BIN)/lint-imports --no-logo

sizes: $(VENV)/.complete ## modules up to 400 lines, functions up to 40
	$(BIN)/python .ci/sizes.py $(CODE)

generated: $(VENV)/.complete ## generated files are up to date
	$(BIN)/python docs/generate.py --check
	$(RULES) --check
	$(BOARDS) --check
	deploy/helm/files --check

generate: $(VENV)/.complete ## write the generated files anew
	$(BIN)/python docs/generate.py
	$(RULES)
	$(BOARDS)
	deploy/helm/files

docs: $(VENV)/.complete ## the documentation as a site, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.complete ## every bar of speed and memory, measured, in one table (10 minutes)
	$(BIN)/python tests/bench

bench-check: $(VENV)/.complete ## whether something has become slower than in tests/bench/baseline.json (UPDATE=1 writes it)
	$(BIN)/python tests/bench/check.py $(if $(UPDATE),--update)

integration: $(VENV)/.complete oldest-env ## the tests that need servers of the system as well
	$(PYTEST) -m "system and not soak and not compose" $(or $(TESTS),tests $(addprefix --ignore=,$(FAULTS)))
ifndef TESTS
	$(PYTEST) $(SIDE_BY_SIDE) -m "system and not soak and not compose" $(FAULTS)
endif

compose-test: $(VENV)/.complete ## docker-compose.yml for real; without Docker, on an engine of its own (as root)
	.ci/compose-test

soak: $(VENV)/.complete ## what takes hours: faults, loads and storms in full (servers as for integration)
	$(PYTEST) -m soak -rP $(or $(TESTS),tests)

integration-packages: ## install those servers (Debian, Ubuntu)
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(DEBIAN_PACKAGES)

sbom: ## the container image's bill of materials (CycloneDX), in dist/sbom.cdx.json
	.ci/supply sbom dist/sbom.cdx.json

audit: ## ask PyPI's advisories about the container image's pins (fails where PyPI does not answer)
	.ci/supply audit

oldest-env: $(OLDEST)/.complete ## the oldest supported Celery and Python, as a worker's environment

lock: ## pin anew what pyproject.toml asks for (needs uv)
	.ci/lock

clean: ## remove what was built; the environments too
	rm -rf $(VENV) $(OLDEST) .venv-supply .types build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.complete: requirements/dev.txt pyproject.toml
	.ci/venv $(VENV) "$${PYTHON:-$$(.ci/find-python 3.13 3.12 3.11 any)}" requirements/dev.txt

$(OLDEST)/.complete: requirements/oldest.txt pyproject.toml
	.ci/venv $(OLDEST) "$${PYTHON_OLDEST:-$$(.ci/find-python 3.10 3.11)}" requirements/oldest.txt
