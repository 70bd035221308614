# `make` runs what must be true before a commit: check, then test.
PYTHON ?= python

.PHONY: all check format test golden readme bench wheel demo-tokenizer

all: check test

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test:
	$(PYTHON) -m pytest -q

# Rewrites tests/golden/*.txt; review the diff line by line.
golden:
	GOLDEN=write $(PYTHON) -m pytest -q tests/test_golden_tables.py

bench:
	$(PYTHON) -m benchmarks.run --scale 10000,50000,300000,1000000

wheel:
	$(PYTHON) -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m zipfile -l dist/*.whl

demo-tokenizer:
	PYTHONPATH=. $(PYTHON) tools/make_demo_tokenizer.py
