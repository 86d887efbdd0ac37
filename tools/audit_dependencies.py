"""Looks up known vulnerabilities of the versions that a constraints file pins, with pip-audit.

    python tools/audit_dependencies.py constraints.txt

Exit status: 0 nothing known, or (loudly) nothing checked because the advisory database cannot be reached; 1 a known
vulnerability, or versions that the database does not have; 2 pip-audit failed.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request

DATABASE = "https://pypi.org/pypi/pip/json"


def database_answers() -> bool:
    """Whether the advisories of the package index can be read: where even those of pip cannot, none can."""
    try:
        with urllib.request.urlopen(DATABASE, timeout=20) as answer:
            return "vulnerabilities" in json.load(answer)
    except (OSError, ValueError):
        return False


def audit(constraints: str) -> int:
    """Prints what is known of each pinned version.

    Args:
        constraints: File of `package==version` lines.

    Returns:
        The exit status, see above.
    """
    if not database_answers():
        print(f"AUDIT SKIPPED: {DATABASE} does not answer, NOTHING WAS CHECKED; run it with network", file=sys.stderr)
        return 0
    process = subprocess.run(
        [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-r", constraints, "-f", "json"],
        capture_output=True,
        text=True,
    )
    try:
        packages = json.loads(process.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"pip-audit failed:\n{process.stderr}", file=sys.stderr)
        return 2
    unknown = [package for package in packages if "skip_reason" in package]
    found = [(package, problem) for package in packages for problem in package.get("vulns", [])]
    for package, problem in found:
        fixed = ", ".join(problem["fix_versions"]) or "no version"
        print(f"VULNERABLE: {package['name']} {package['version']}: {problem['id']}, fixed in {fixed}")
    for package in unknown:
        print(f"NOT CHECKED: {package['skip_reason']}", file=sys.stderr)
    print(f"{len(packages) - len(unknown)} of {len(packages)} versions checked, {len(found)} known vulnerabilities")
    if unknown and len(unknown) == len(packages):
        print("AUDIT SKIPPED: the database has none of these versions, NOTHING WAS CHECKED", file=sys.stderr)
        return 0
    return 1 if found or unknown else 0


if __name__ == "__main__":
    sys.exit(audit(sys.argv[1]))
