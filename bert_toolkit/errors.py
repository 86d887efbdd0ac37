"""The one error that a user's input can cause: recipes print it as a single line and exit with status 2."""

LONGEST_MESSAGE = 1000  # characters; what is wrong stands at the beginning, what to do at the end


class InputError(ValueError):
    """Input that the toolkit refuses.

    The message is one line that names what was wrong, what is accepted, what came, and what to do. It may hold text
    of the input or of another library's error: `one_line` makes any text fit to be printed.

    Args:
        message: Anything that says what is wrong; it becomes one line.
    """

    def __init__(self, message: str) -> None:
        """Make `message` one line."""
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return text as one line of at most `LONGEST_MESSAGE` characters, all of which can be shown.

    Lines are joined with a space; control characters, halves of characters and the like become their escapes, so that
    a file's content can neither break the line nor drive the terminal.

    Args:
        text: Any text.

    Returns:
        The line.
    """
    joined = " ".join(filter(None, map(str.strip, text.splitlines())))
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in joined)
    if len(shown) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        shown = f"{shown[: half - 3]} … {shown[-half:]}"
    return shown


def reason_of(error: BaseException) -> str:
    r"""Return the reason that an error of another library gives, for use in a message of one line.

    Args:
        error: Any error.

    Returns:
        What the system says of a file (`No space left on device`, without the path), otherwise the first line of the
        error's text, or the name of its class if it has none.

    Examples:
        >>> reason_of(ValueError("no such column\nand much more"))
        'no such column'
        >>> reason_of(KeyboardInterrupt())
        'KeyboardInterrupt'
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0].rstrip()
