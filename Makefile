# What a newcomer types. PYTHON chooses the interpreter (3.11 or later), VENV the environment, WORKERS how many processes
# test at a time: 0 for this one alone, auto for one a core, up to 8.
PYTHON ?= python3
VENV ?= .venv
LMMS ?= .venv-lmms-eval
WORKERS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)

# Tests run with locked versions, by their hashes, on Linux on x86-64 and the Pythons that have a lock; with
# `make LOCKED=no`, and elsewhere, with whatever pyproject.toml allows.
LOCKED ?= $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),yes,no)
locks = $(if $(filter yes,$(LOCKED)),$(wildcard requirements/$(1)-$(PYTHON_VERSION).txt))

.PHONY: demo test faults lint lmms-eval lock audit wheel clean

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

# The plugin for lmms-eval, in an environment of its own (integrations/lmms_eval/README.md). It fetches 1 GB with torch.
lmms-eval: $(LMMS)/.installed
	$(LMMS)/bin/python -m pytest -q -p no:cacheprovider --confcutdir integrations -c integrations/lmms_eval/pyproject.toml integrations/lmms_eval/tests

$(LMMS)/.installed: pyproject.toml $(wildcard integrations/lmms_eval/*.t*) $(wildcard integrations/lmms_eval/*/*.py)
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet torch==2.13.0
	$(LMMS)/bin/python -m pip install --quiet --editable '.[serve]' pytest
	$(LMMS)/bin/python -m pip install --quiet --requirement integrations/lmms_eval/requirements.txt
	$(LMMS)/bin/python -m pip install --quiet --no-deps lmms-eval==0.7.3
	$(LMMS)/bin/python -m pip install --quiet --no-deps --editable integrations/lmms_eval
	touch $@

# Both are made anew when pyproject.toml changes. The demo needs the package alone, tests and linters the extra `dev`.
define environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
endef

$(VENV)/.installed: pyproject.toml
	$(environment)
	$(PIP) --editable .
	touch $@

# torch, the live reference, and the TPU compiler are had where pip finds their wheels; without them some tests are
# skipped. The compiler stands beside the environment and not in it, where JAX would look for a TPU on every start.
ifneq ($(call locks,test),)
$(VENV)/.installed-dev: pyproject.toml $(call locks,test) $(call locks,reference) $(call locks,libtpu)
	$(environment)
	$(PIP) --require-hashes --only-binary :all: -r $(call locks,test)
	$(PIP) --no-build-isolation --no-deps --editable .
	$(if $(call locks,reference),-$(PIP) --require-hashes --only-binary :all: -r $(call locks,reference))
	-$(PIP) --require-hashes --no-deps --target $(VENV)/libtpu --upgrade -r $(call locks,libtpu)
	touch $(VENV)/.installed $@
else
LIBTPU := from importlib.metadata import requires; print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu")))

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	-$(PIP) --no-deps --target $(VENV)/libtpu --upgrade "$$($(BIN)/python -c '$(LIBTPU)')"
	touch $@
endif

# Renews the locked versions, see there.
lock: $(VENV)/.installed-dev
	PATH=$(abspath $(BIN)):$$PATH .ci/lock

# What is known of the locked versions, but for the exceptions in requirements/exceptions.toml that have not expired.
audit: $(VENV)/.installed-dev
	$(BIN)/python .ci/audit.py $(wildcard requirements/test-*.txt requirements/reference-*.txt)

# The wheel, and next to it what it consists of, by the locked versions of what it needs (CycloneDX).
wheel: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation
	mkdir -p build  # the version, which setuptools reads from the package, stands in a copy
	sed "s/^dynamic = .*/version = \"$$($(BIN)/python -c 'import videollava_jax.version as v; print(v.__version__)')\"/" \
	  pyproject.toml > build/pyproject.toml
	$(BIN)/cyclonedx-py requirements --pyproject build/pyproject.toml --mc-type library --output-reproducible \
	  -o "$$(echo dist/*.whl | sed 's/-py3-none-any.whl//').cdx.json" requirements/package-$(PYTHON_VERSION).txt

clean:
	rm -rf $(VENV) $(LMMS) .cache .mypy_cache .ruff_cache .pytest_cache
