"""What a run was started with: its command and the versions of the packages that decide a result."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path


def command_line() -> str:
    """Return the command that started this process, as one can type it again.

    Returns:
        The command without the launcher's own flags.
    """
    return shlex.join([Path(sys.executable).name, *sys.argv])


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result.

    Returns:
        Package to version.
    """
    packages = ("bert_toolkit", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
