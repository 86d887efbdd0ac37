"""Writing a file whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_at_once(path: Path) -> Iterator[Path]:
    """Give the path of a neighboring file to write, which then takes the place of `path` in one move.

    Whoever reads `path`, at any moment, finds the file of before or the new one. If writing ends with an error, the
    neighbor is removed and the file of before stays.

    Args:
        path: The file to write. Its folder is made if it is not there.

    Yields:
        The neighbor: `path` with `.partial` added to its name.

    Raises:
        OSError: The folder, the neighbor or the move is not possible.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "scores" / "results.json"
        ...     with replaced_at_once(path) as partial:
        ...         _ = partial.write_text("{}", encoding="utf-8")
        ...     [file.name for file in path.parent.iterdir()]
        ['results.json']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
