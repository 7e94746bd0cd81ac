# Thin wrappers over plain commands; README.md shows them for those without make.
PYTHON ?= python3.11

.PHONY: demo test lint clean

.venv/.ready: requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --no-deps -r requirements/lock.txt
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: .venv/.ready
	.venv/bin/python -m demo --out demo-out

lint: .venv/.ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check --no-cache .
	.venv/bin/mypy

test: .venv/.ready lint
	.venv/bin/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=80

clean:
	rm -rf .venv demo-out .mypy_cache .ruff_cache .pytest_cache
