.PHONY: audit

# Known vulnerabilities of the pinned versions; in an environment of its own, so that it adds nothing to yours.
audit:
	python3 -m venv .venv-audit
	-.venv-audit/bin/python -m pip install --quiet "pip-audit>=2.7"
	.venv-audit/bin/python tools/audit_dependencies.py constraints.txt
