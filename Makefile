# make demo | make test: each makes .venv and installs what it needs.
PYTHON ?= python3
DATASET ?= digits
SEED ?= 0
MODEL_DIR ?= runs/$(DATASET)-seed$(SEED)
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-all soak lint clean

demo: $(VENV)/installed
	$(PY) run.py --mode=semi_supervised --dataset=$(DATASET) --seed=$(SEED) --model_dir=$(MODEL_DIR)

test: $(VENV)/installed-dev lint
	$(PY) -m pytest

test-all: $(VENV)/installed-dev lint
	$(PY) -m pytest -m "not soak"

# Long versions of the tests of faults: all kills and full disks, a long run, 2,000 other examples of each property.
soak: $(VENV)/installed-dev
	$(PY) -m pytest -m "slow or not slow" tests/runs/test_soak.py tests/runs/test_survival.py
	$(PY) -m pytest --hypothesis-profile=soak -k any tests/settings/test_config.py tests/test_cli.py tests/test_security.py \
	  tests/data/test_sources.py tests/data/test_augment.py tests/data/test_input.py tests/methods/test_schedules.py

lint: $(VENV)/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
