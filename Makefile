.PHONY: style quality test test-oldest test-pythons audit

# the environment of CONTRIBUTING.md where it is there, otherwise the active one
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python)

# Changes files
style:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# Changes nothing and fails where something is left to do
quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

# The fast tests with the oldest versions that setup.cfg allows, in an environment of its own
test-oldest:
	python3 -m venv .venv-oldest
	.venv-oldest/bin/pip install -c constraints-oldest.txt -e ".[recipes,offline]" pytest pytest-xdist hypothesis peft
	.venv-oldest/bin/python -m pytest -m "not slow and not launch"

# The fast tests on other versions of Python, each in an environment of its own: PYTHONS are commands or paths
PYTHONS ?= python3.12 python3.13
test-pythons:
	for python in $(PYTHONS); do \
		folder=.venv-$$(basename $$python) && $$python -m venv $$folder \
		&& $$folder/bin/pip install -c constraints.txt -e ".[recipes,offline,test]" \
		&& $$folder/bin/python -m pytest -m "not slow and not launch and not foreign" || exit 1; \
	done

# Known vulnerabilities of the pinned versions; in an environment of its own, so that it adds nothing to yours.
audit:
	python3 -m venv .venv-audit
	-.venv-audit/bin/python -m pip install --quiet "pip-audit>=2.7"
	.venv-audit/bin/python tools/audit_dependencies.py constraints.txt
