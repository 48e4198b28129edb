# The README's two commands, for those who have make.
VENV ?= .venv

.PHONY: quickstart test

quickstart: $(VENV)/installed
	$(VENV)/bin/python -m flowers.train experiment=quickstart

test: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check && $(VENV)/bin/ruff check && $(VENV)/bin/mypy && $(VENV)/bin/pytest

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	touch $@
