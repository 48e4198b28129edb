# The README's two commands, for machines that have make.
VENV ?= .venv

.PHONY: quickstart check test docs

quickstart: $(VENV)/installed
	$(VENV)/bin/flowers train experiment=quickstart

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check && $(VENV)/bin/ruff check && $(VENV)/bin/mypy
	$(VENV)/bin/lint-imports && $(VENV)/bin/mkdocs build --strict

test: check
	$(VENV)/bin/pytest -n 2

docs: $(VENV)/installed-dev
	$(VENV)/bin/mkdocs serve

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@
