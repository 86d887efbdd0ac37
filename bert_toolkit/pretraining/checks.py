"""What the parts of pre-training ask of their arguments and of a tokenizer."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError


def require_fractions(**values: float) -> None:
    """Refuse fractions and probabilities that are none.

    Args:
        values: Name of each argument to its value.

    Raises:
        InputError: A value lies outside [0, 1].
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"`{name}` must lie in [0, 1], got {value}")


def require_special_tokens(tokenizer: PreTrainedTokenizerBase, names: Iterable[str], purpose: str) -> None:
    """Refuse a tokenizer that lacks a special token.

    Args:
        tokenizer: Any tokenizer.
        names: Attributes of the tokenizer, such as "mask_token".
        purpose: What needs them, for the message: "a sentence pair".

    Raises:
        InputError: The tokenizer has no such token.
    """
    for name in names:
        if getattr(tokenizer, name) is None:
            raise InputError(
                f"the tokenizer has no `{name}`, which {purpose} needs: "
                f"set it with tokenizer.add_special_tokens({{'{name}': ...}})"
            )
