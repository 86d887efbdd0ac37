"""Keeps what goes wrong in an observer away from the training that it observes."""

import logging
from collections.abc import Callable
from typing import TypeVar

from bert_toolkit.errors import one_line

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class SafeOutputs:
    """Outputs that may fail: the first error of each is told in one warning, and the output is left out from then on.

    Args:
        owner: Whose outputs these are, the beginning of the warning, e.g. `Gradient flow`.

    Examples:
        >>> outputs = SafeOutputs("Gradient flow")
        >>> outputs.attempt("figures", lambda: 1 / 0) is None  # and a warning that there are no more figures
        True
        >>> sorted(outputs.failed)
        ['figures']
    """

    def __init__(self, owner: str):
        self.owner = owner
        self.failed: dict[str, Exception] = {}

    def attempt(self, output: str, action: Callable[[], Result]) -> Result | None:
        """Run an action unless its output has failed before.

        Args:
            output: What the action makes, in words, e.g. `figures`.
            action: Makes it.

        Returns:
            What the action returned; None if it failed now or its output has failed before.
        """
        if output in self.failed:
            return None
        try:
            return action()
        except Exception as error:
            self.failed[output] = error
            reason = f"{type(error).__name__}: {one_line(str(error))}"
            logger.warning("%s: no %s from here on, training goes on. %s", self.owner, output, reason)
            logger.debug("%s: where %s failed", self.owner, output, exc_info=error)
            return None
