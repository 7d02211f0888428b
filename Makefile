# What a newcomer types. PYTHON chooses the interpreter (3.11 or later), VENV the environment, WORKERS how many processes
# test at a time: 0 for this one alone, auto for one a core, up to 8.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin

.PHONY: demo test faults lint clean

demo: $(VENV)/.installed
	$(BIN)/videollava demo --picture out/demo.png

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Half an hour; FAULTS="--only media --scale 0.1" for less of it.
faults: $(VENV)/.installed-dev
	$(BIN)/python -m tests.faults $(FAULTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The TPU compiler, for the tests that compile for chips which are not here. It stands beside the environment and not in
# it, where JAX would look for a TPU on every start. Where there is no wheel of it those tests are skipped.
LIBTPU := from importlib.metadata import requires; print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))

# Both are made anew when pyproject.toml changes. The demo needs the package alone, tests and linters the extra `dev`.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	-$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/libtpu --upgrade "$$($(BIN)/python -c '$(LIBTPU)')"
	touch $@

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
