"""README's two commands and what CI runs stay the same."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands_of_readme() -> list[str]:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    return [block.strip() for block in re.findall(r"```bash\n(.*?)```", first_screen, re.DOTALL)]


def test_first_screen_of_readme_has_exactly_two_commands():
    run, test = commands_of_readme()
    assert run.endswith("accelerate launch recipes/cola.py")
    assert test.endswith("-m pytest")
    assert all(
        command.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ")
        for command in (run, test)
    )


def test_ci_runs_the_test_command_of_readme_to_the_letter():
    assert commands_of_readme()[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_ci_runs_the_first_command_of_readme_at_a_reduced_size():
    launch = commands_of_readme()[0].rsplit(" && ", 1)[1]
    assert re.search(
        rf"^{re.escape(launch)} --max_train_samples \d+ ", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )
