"""Hooks that run within somebody's forward and backward passes: what goes wrong in one must not end these."""

from collections.abc import Callable
from typing import Any

import torch


class GuardedHooks:
    """Hooks whose first error is kept until somebody asks; after an error they do nothing.

    Nor do they within `torch.func.vmap` and `grad`, whose tensors must not be kept: such a pass is none of the loop's.

    Examples:
        >>> guard = GuardedHooks()
        >>> hook = guard(lambda module, inputs, output: 1 / 0)
        >>> hook(None, (), None)
        >>> guard.check()
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """

    def __init__(self) -> None:
        self._failure: Exception | None = None

    def __call__(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Return a hook that never raises.

        Args:
            hook: A hook that returns nothing, so that it changes nothing.
        """

        def guarded(*args: Any, **kwargs: Any) -> None:
            if self._failure is None and torch._C._functorch.peek_interpreter_stack() is None:
                try:
                    hook(*args, **kwargs)
                except Exception as error:
                    self._failure = error

        return guarded

    def check(self) -> None:
        """Raise what went wrong since the last check.

        Raises:
            Exception: Whatever it was.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
