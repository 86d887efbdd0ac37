"""How the tests of recipes start a recipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def launch():
    """Runs a recipe through `accelerate launch`: `launch(recipe, flags, config)` gives the finished process."""

    def run(recipe: str, flags: dict, config: str = "cpu", timeout: int = 300) -> subprocess.CompletedProcess:
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        return subprocess.run(
            [
                *launcher,
                str(RECIPES / "accelerate_configs" / f"{config}.yaml"),
                str(RECIPES / f"{recipe}.py"),
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**inherited, "OMP_NUM_THREADS": "1"},
        )

    return run
