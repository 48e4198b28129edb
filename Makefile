# The README's two commands, for machines that have make.
VENV ?= .venv

# The tools for the locks have fixed versions and an environment of their own: the same input gives the same lock.
SUPPLY ?= build/supply
COMPILE = $(SUPPLY)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--annotation-style line --custom-compile-command "make lock" $(UPGRADE)

.PHONY: quickstart check test docs lock lock-check sbom audit wheelhouse lowest

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

# Keeps the versions in the locks where pyproject.toml allows them; make lock UPGRADE=--upgrade takes the newest.
lock: $(SUPPLY)/installed
	$(COMPILE) pyproject.toml --extra dev --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --constraints requirements-dev.lock --output-file requirements.lock

lock-check: lock
	git diff --exit-code -- requirements.lock requirements-dev.lock

# The software bill of materials (CycloneDX) of a release.
sbom: $(SUPPLY)/installed
	$(SUPPLY)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-file build/sbom.json

# Asks a service for known vulnerabilities, so it needs a network.
audit: $(SUPPLY)/installed
	$(SUPPLY)/bin/pip-audit --disable-pip --strict -r requirements-dev.lock

# All that a machine without network needs: python3 -m pip install --no-index --find-links build/wheelhouse flowers
wheelhouse: $(VENV)/installed
	$(VENV)/bin/pip wheel --quiet --require-hashes -r requirements.lock --wheel-dir build/wheelhouse
	$(VENV)/bin/pip wheel --quiet --no-deps . --wheel-dir build/wheelhouse

# The unit tests with the lowest versions that pyproject.toml admits.
lowest: $(SUPPLY)/installed
	$(SUPPLY)/bin/uv venv --clear --python 3.11 build/lowest
	$(SUPPLY)/bin/uv pip install --quiet --python build/lowest --resolution lowest-direct --editable '.[dev]'
	build/lowest/bin/python -m pytest -n 2 tests/unit

$(SUPPLY)/installed:
	python3 -m venv $(SUPPLY)
	$(SUPPLY)/bin/pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@
