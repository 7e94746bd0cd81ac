# Thin wrappers over plain commands; README.md shows them for those without make.
PYTHON ?= python3.11

.PHONY: demo test tools lint clean

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

# Debian packages that tests use and skip without; installed where that is possible. A line of requirements/debian.txt is a
# package and, where it is called otherwise, the command that it brings.
tools:
	@while read -r package command; do \
	  command -v $${command:-$$package} >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends $$package >/dev/null; } </dev/null || \
	  echo "$$package is missing: its tests are skipped"; \
	done <requirements/debian.txt

test: .venv/.ready tools lint
	.venv/bin/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=80

clean:
	rm -rf .venv demo-out .mypy_cache .ruff_cache .pytest_cache
