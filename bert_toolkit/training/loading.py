"""Loads models and tokenizers so that whatever is wrong with their files is the toolkit's one-line error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedConfig

from bert_toolkit.errors import InputError


def load_pretrained(auto_class: Any, name_or_path: str, trust_remote_code: bool = False, **settings: Any) -> Any:
    """`auto_class.from_pretrained`, which runs no code of the model unless told to.

    Args:
        auto_class: A model, tokenizer or configuration class, or one of the Auto classes.
        name_or_path: Folder or hub name.
        trust_remote_code: Whether Python files that lie beside the model may be run.
        settings: Passed on. For a model pass `use_safetensors=True`: that format cannot run code.

    Raises:
        InputError: Anything that `from_pretrained` raises, in one line.
    """
    with _errors_in_one_line(name_or_path, auto_class.__name__):
        return auto_class.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **settings)


def model_type_of(name_or_path: str) -> str:
    """The `model_type` of a saved model; `bert` for the checkpoints of 2018 and 2019, which name none.

    Raises:
        InputError: The configuration cannot be read.
    """
    with _errors_in_one_line(name_or_path, "a configuration"):
        settings, _ = PreTrainedConfig.get_config_dict(name_or_path)
        return settings.get("model_type", "bert")


@contextmanager
def _errors_in_one_line(name_or_path: str, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files make the libraries raise whatever their parsers do
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = ": pass `trust_remote_code true` if you trust that code" if "trust_remote_code" in reason else ""
        raise InputError(f"{name_or_path} cannot be loaded as {what}: {reason[:300]}{remedy}") from error
