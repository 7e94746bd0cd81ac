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

# Debian packages that tests use and skip without (requirements/debian.txt); installed where that is possible.
tools:
	@for tool in $$(cat requirements/debian.txt); do \
	  command -v $$tool >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  apt-get install -qq -y --no-install-recommends $$tool >/dev/null; } || echo "$$tool is missing: its tests are skipped"; \
	done

test: .venv/.ready tools lint
	.venv/bin/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=80

clean:
	rm -rf .venv demo-out .mypy_cache .ruff_cache .pytest_cache
