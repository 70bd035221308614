# `make` runs all checks and tests, as before a commit. `make quick` runs the most telling tests, in under a minute.
PYTHON ?= python
# Floors, formats, repairs, mixes, masks and the command line. The core and the `test` extra are enough to run them.
QUICK = $(addprefix tests/test_, imports.py schemas.py formats_by_mapping.py mix.py react.py screens.py repair_rows.py \
	weigh.py golden_tables.py cli.py)

.PHONY: all check format test quick golden readme bench wheel demo-tokenizer

all: check test

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test:
	$(PYTHON) -m pytest -q -n auto

quick:
	$(PYTHON) -m pytest -q -m "not slow" $(QUICK)
	$(PYTHON) -m pytest -q -m "not slow" tests/test_laws.py -k demo/auto

# Rewrites tests/golden/*.txt. Review the diff line by line.
golden:
	GOLDEN=write $(PYTHON) -m pytest -q tests/test_golden_tables.py

bench:
	$(PYTHON) -m benchmarks.bars
	$(PYTHON) -m benchmarks.run --scale 10000,50000,300000,1000000

wheel:
	$(PYTHON) -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m zipfile -l dist/*.whl

demo-tokenizer:
	PYTHONPATH=. $(PYTHON) tools/make_demo_tokenizer.py
