"""Files for the hosting service: they parse, and say the same as the files that they repeat."""

import configparser
import re
from pathlib import Path

import yaml
from test_commands import commands_of_readme

import bert_toolkit

ROOT = Path(__file__).parents[1]


def steps(workflow):
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text())["jobs"]
    return {name: [step.get("run", step.get("uses")) for step in job["steps"]] for name, job in jobs.items()}


def test_ci_runs_the_test_command_of_readme_to_the_letter():
    assert steps("tests")["tests"][-1] == commands_of_readme()[1]
    assert "make quality" in steps("tests")["quality"]


def test_slow_tests_run_every_week_and_none_is_skipped_for_a_package_that_is_not_installed():
    text = (ROOT / ".github" / "workflows" / "slow.yml").read_text()
    assert "cron:" in text and "workflow_dispatch:" in text
    *_, install, run = steps("slow")["slow"]
    assert install.endswith('".[recipes,offline,test]" twine'), "notebooks and the check of metadata need these"
    assert run == ".venv/bin/python -m pytest -m slow"


def test_publishing_needs_no_secret_and_checks_first():
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
    workflow = yaml.safe_load(text)
    assert "secrets." not in text
    assert workflow["permissions"] == {"contents": "read"}, "what is not asked for is not given"
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert workflow["jobs"]["publish"]["needs"] == "build"
    assert any("twine check --strict" in step for step in steps("publish")["build"])


def test_what_the_package_index_shows_leads_nowhere_relative():
    """Links and images of a long description have no folder to start from there."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    page = metadata["metadata"]["long_description"].removeprefix("file: ")
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=[\"']([^\"']*)", (ROOT / page).read_text(encoding="utf-8"))
    assert page != "README.md" and all("".join(target).startswith("https://") for target in targets)


def test_every_file_for_the_hosting_service_parses():
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
    assert len(files) >= 7
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file


def test_version_and_license_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert citation["version"] == metadata["metadata"]["version"] == bert_toolkit.__version__
    assert citation["license"] == metadata["metadata"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "required by the format"
