# One virtual environment for everything; `make quickstart` and `make test` build it when it is missing or out of date.
PYTHON ?= python3
# A fixed version, so that pip does not look for the newest build of several gigabytes. Any torch >= 2.11 will do.
TORCH ?= torch==2.13.0
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check lint clean

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[demo,test]"
	touch $@

quickstart: $(VENV)/installed  ## learn three tasks one after another, on data in recipes/data
	$(BIN)/eidetic-hf train recipes/quickstart.yaml

test: $(VENV)/installed  ## the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: lint  ## format, lint, types and the fast tests, in under three minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not matrix"

lint: $(VENV)/installed  ## format, lint and type checks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
