"""How the tests of launch modes start a recipe: as processes that can be watched and signalled while they run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
PATIENCE = 240  # seconds, of a loaded machine


@dataclass
class Launcher:
    """A started `accelerate launch`; what it prints goes to a file, so that no pipe can fill up."""

    process: subprocess.Popen
    log: Path

    def finish(self) -> int:
        """Waits for the end and returns the exit code."""
        return self.process.wait(PATIENCE)

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def worker(self, rank: int) -> psutil.Process:
        """The process of a rank, once it runs."""

        def find() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if child.environ().get("RANK") == str(rank):
                        return child
                except psutil.NoSuchProcess:
                    continue
            return None

        return self.wait_for(find, f"the process of rank {rank}")

    def wait_for(self, condition: Callable, what: str):
        """What `condition` gives once it is true; fails when the launcher ends before, or time is up."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, f"ended before {what}: {self.printed[-3000:]}"
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come: {self.printed[-3000:]}")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Launcher]]:
    """Starts a recipe: `start(recipe, flags, config, *flags_of_the_launcher)`; whatever still runs is ended after."""
    started: list[Launcher] = []

    def run(recipe: str, flags: dict, config: str, *launcher_flags: str) -> Launcher:
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        log = tmp_path_factory.mktemp("log") / "printed.txt"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "accelerate.commands.launch"),
                    *("--config_file", str(RECIPES / "accelerate_configs" / f"{config}.yaml"), *launcher_flags),
                    *(str(RECIPES / f"{recipe}.py"), *arguments),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**inherited, "OMP_NUM_THREADS": "1"},
            )
        started.append(Launcher(process, log))
        return started[-1]

    yield run
    for launcher in started:
        if launcher.process.poll() is None:
            family = [*psutil.Process(launcher.process.pid).children(recursive=True), launcher.process]
            for member in family:
                member.kill()
            launcher.process.wait()
