"""Recognizes a full disk in what Python, safetensors and PyTorch raise when they cannot write a file."""

from __future__ import annotations

import errno
import re

from bert_toolkit.errors import reason_of

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, quota exceeded, file larger than allowed."""


def full_disk_reason(error: BaseException) -> str | None:
    """Return what could not be written, if an error says that a disk is full or that a file may not grow.

    safetensors wraps the system's error in one of its own that names the number, and PyTorch's writer of archives
    forgets the reason, so that any failed write of it counts.

    Args:
        error: Any error; those that it was raised from or in the handling of are looked at too.

    Returns:
        The reason, with the file where it is known; None for other errors.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in FULL:
            return reason_of(current) + (f": {current.filename}" if current.filename else "")
        number = re.search(r"\(os error (\d+)\)", str(current))
        if number is not None and int(number[1]) in FULL:
            return reason_of(current)
        if isinstance(current, RuntimeError) and re.search("iostream error|file write failed", str(current)):
            return "PyTorch could not write a file, most likely because the disk is full"
        current = current.__cause__ or current.__context__
    return None
