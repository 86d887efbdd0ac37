"""The one error that a user's input can cause: recipes print it as a single line and exit with status 2."""


class InputError(ValueError):
    """Input that the toolkit refuses.

    The message is one line that names what was wrong, what is accepted, what came, and what to do.
    """
