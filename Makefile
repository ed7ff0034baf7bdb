# Overread. `make` alone shows what there is. Needs Python 3.11-3.13, git and a package index; everything else lands in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Extra arguments for pip, for instance --extra-index-url with PyTorch's CPU-only index to save gigabytes on Linux.
PIP_ARGS ?=

export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true

.DEFAULT_GOAL := help
.PHONY: help setup servers demo up doctor test check quick soak bench screenshots drill lock clean

help: ## show this
	@echo "Overread: a second reader that learns from every confirmed diagnosis, and changes only with evidence."
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  First time on a machine: 'make demo' (a few minutes to install, then two to five to run)."

setup: $(VENV)/installed ## create .venv and install everything, once

$(VENV)/installed: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Overread needs Python 3.11, 3.12 or 3.13; {sys.executable} is {v[0]}.{v[1]}. Try: make PYTHON=python3.12 ...")'
	@git --version > /dev/null || { echo "Overread keeps its datasets in git: install git first."; exit 1; }
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c .ci/constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## run the whole loop on real chest X-rays: a better model gets in, a poisoned one does not
	@$(BIN)/overread demo $(DEMO_ARGS)

up: setup ## start the service on this machine, under ~/.overread (Ctrl-C stops it)
	@$(BIN)/overread up

doctor: setup ## check the running service and print what to mend
	@$(BIN)/overread doctor

servers: ## install Redis, RabbitMQ and Chromium for the tests, where apt-get can; else their tests are skipped
	@sh .ci/servers.sh

test: setup check servers ## everything the project promises, against real processes (half an hour)
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(PYTEST_ARGS) || $(BIN)/python tests/again.py $$?

check: setup ## style, types and arrows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

quick: setup ## the tests without the journeys, without checks and servers
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --ignore=tests/journeys $(PYTEST_ARGS)

soak: setup servers ## the long versions of the tests (about an hour)
	@$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)
	@SCHEMATHESIS_EXAMPLES=50 $(BIN)/python -m pytest tests/pipelines tests/registry tests/api/test_schemathesis.py --hypothesis-profile searching

bench: setup ## measure: official PneumoniaMNIST test, prediction latency
	@$(BIN)/python -m benchmarks.pneumonia
	@$(BIN)/python -m benchmarks.inference

screenshots: setup servers ## photograph every page of the console after a demo, into docs/images
	@$(BIN)/python -m tests.console.screenshots

drill: setup ## lose a whole service under load, restore it, and print what was lost and how long it took
	@$(BIN)/overread drill

lock: setup ## write the installed versions to .ci/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > .ci/constraints.txt

clean: ## remove .venv and what the demo left
	rm -rf $(VENV) .home
