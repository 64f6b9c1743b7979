# One virtual environment for everything; `make quickstart` and `make test` build it when it is missing or out of date.
PYTHON ?= python3
# A fixed version, so that pip does not look for the newest build of several gigabytes. Any torch >= 2.11 will do.
TORCH ?= torch==2.13.0
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# A checkout of transformers at the installed version, for its tests, which no package has.
SUITES := $(VENV)/transformers-checkout
TRANSFORMERS_TESTS ?= $(SUITES)/tests

.PHONY: quickstart test test-transformers check lint clean

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -e ".[demo,test]"
	touch $@

quickstart: $(VENV)/installed  ## learn three tasks one after another, on data in recipes/data
	$(BIN)/eidetic-hf train recipes/quickstart.yaml

test: $(VENV)/installed  ## the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not transformers"

check: lint  ## format, lint, types and the fast tests, in under three minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not matrix and not transformers"

test-transformers: $(VENV)/installed  ## transformers' own suites on models of this library, see docs/transformers_suites.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[suites]"
	-test -d $(TRANSFORMERS_TESTS) || { \
		version=$$($(BIN)/python -c "import transformers; print(transformers.__version__)"); \
		git clone --quiet --depth 1 --filter=blob:none --sparse --branch v$$version \
			https://github.com/huggingface/transformers $(SUITES) && \
		git -C $(SUITES) sparse-checkout set src/transformers tests utils; }
	TRANSFORMERS_TESTS=$(TRANSFORMERS_TESTS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -rs \
		tests/transformers_suites

lint: $(VENV)/installed  ## format, lint and type checks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
