"""A figure in the output of a notebook's cell, replaced by a newer one while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from bert_toolkit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawing takes a good part of a second: it may take this fraction of a run's time.
_TIME_FRACTION = 0.1


class LiveFigure:
    """One picture in the output of the cell that trains.

    Needs IPython, which every notebook has; nothing imports it before.

    Raises:
        InputError: This is no notebook.
    """

    def __init__(self) -> None:
        check_notebook()
        self.begin()

    def begin(self) -> None:
        """Start a picture of its own for a run that begins, below the cell that trains it."""
        self._display: Any = None
        self._started = time.perf_counter()
        self._drawing_seconds = 0.0

    def show(self, draw: Callable[[], Figure], at_end: bool = False) -> None:
        """Show a newer figure in place of the last one, unless drawing has taken too much of the run's time.

        Args:
            draw: Makes the figure.
            at_end: Draw in any case.
        """
        begin = time.perf_counter()
        is_first = self._display is None
        if not (is_first or at_end or self._drawing_seconds <= _TIME_FRACTION * (begin - self._started)):
            return
        from IPython.display import Image, display

        file = BytesIO()
        draw().savefig(file, format="png")
        picture = Image(data=file.getvalue())
        if is_first:
            self._display = display(picture, display_id=True)
        else:
            self._display.update(picture)
        self._drawing_seconds += time.perf_counter() - begin


def check_notebook() -> None:
    """Refuse to show anything where no notebook can show it.

    Raises:
        InputError: This is no notebook.
    """
    remedy = "elsewhere TensorBoard shows the same figures, and `callback.figure(name).savefig(file)` writes one"
    try:
        from IPython import get_ipython
    except ImportError:
        raise InputError(f"a live figure needs a notebook, and IPython is not installed; {remedy}") from None
    # a terminal's IPython has no kernel and shows no pictures
    if getattr(get_ipython(), "kernel", None) is None:
        raise InputError(f"a live figure needs a notebook, this is a script or a terminal; {remedy}")
