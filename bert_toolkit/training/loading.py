"""Loads models and tokenizers so that whatever is wrong with their files is the toolkit's one-line error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import logging

from bert_toolkit.data.corpus_splits import CorpusSplits
from bert_toolkit.errors import InputError
from bert_toolkit.model import (
    ToolkitBertForQuestionAnswering,
    ToolkitBertForSequenceClassification,
    ToolkitBertForTokenClassification,
)

CLASSIFIERS = {
    "toolkit": ToolkitBertForSequenceClassification,
    "transformers": AutoModelForSequenceClassification,
}
TAGGERS = {"toolkit": ToolkitBertForTokenClassification, "transformers": AutoModelForTokenClassification}
ANSWERERS = {"toolkit": ToolkitBertForQuestionAnswering, "transformers": AutoModelForQuestionAnswering}


def load_pretrained(auto_class: Any, name_or_path: str, trust_remote_code: bool = False, **settings: Any) -> Any:
    """Call `auto_class.from_pretrained`, which runs no code of the model unless told to.

    Args:
        auto_class: A model, tokenizer or configuration class, or one of the Auto classes.
        name_or_path: Folder or hub name.
        trust_remote_code: Whether Python files that lie beside the model may be run.
        settings: Passed on. For a model pass `use_safetensors=True`: that format cannot run code.

    Returns:
        What `from_pretrained` returns.

    Raises:
        InputError: Anything that `from_pretrained` raises, in one line.
    """
    with _errors_in_one_line(name_or_path, auto_class.__name__):
        return auto_class.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **settings)


def load_and_tell(auto_class: Any, name_or_path: str, trust_remote_code: bool = False, **settings: Any) -> Any:
    """Call `load_pretrained` for a model to train, in float32, and say in a line each what is new and what is missing.

    transformers' own report shows a new head, which every fine-tuning has, as it shows a damaged encoder; and it loads
    weights in the precision in which they were saved, in which half of the updates would be rounded away.

    Args:
        auto_class: A model class.
        name_or_path: Folder or hub name.
        trust_remote_code: See `load_pretrained`.
        settings: See `load_pretrained`.

    Returns:
        The model.

    Raises:
        InputError: See `load_pretrained`.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, found = load_pretrained(
            auto_class, name_or_path, trust_remote_code, output_loading_info=True, dtype=torch.float32, **settings
        )
    finally:
        logging.set_verbosity(verbosity)
    if PartialState().is_main_process:
        inner = f"{model.base_model_prefix}."
        new, left_out = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
        head, missing = ([name for name in new if name.startswith(inner) is inside] for inside in (False, True))
        lost = [name for name in left_out if name.startswith(inner)]
        if (saved := _precision_of(name_or_path)) != "float32":
            print(f"saved in {saved}, trained and saved in float32: {name_or_path}", flush=True)
        if head:
            print(f"new head, random until it is trained: {_some(head)}", flush=True)
        if missing:
            print(f"warning: {name_or_path} lacks weights of the encoder, which begin at random: {_some(missing)}")
        if lost:
            print(f"warning: {name_or_path} has weights for which this encoder has no place: {_some(lost)}")
    return model


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _precision_of(name_or_path: str) -> str:
    settings, _ = PreTrainedConfig.get_config_dict(name_or_path)
    return str(settings.get("dtype") or settings.get("torch_dtype") or "float32")


def model_type_of(name_or_path: str) -> str:
    """Return the `model_type` of a saved model; `bert` for the checkpoints of 2018 and 2019, which name none.

    Args:
        name_or_path: Folder or hub name.

    Returns:
        The value in `config.json`.

    Raises:
        InputError: The configuration cannot be read.
    """
    with _errors_in_one_line(name_or_path, "a configuration"):
        settings, _ = PreTrainedConfig.get_config_dict(name_or_path)
        return str(settings.get("model_type", "bert"))


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False, of_words: bool = False) -> Any:
    """Load the tokenizer of a model whose texts can form batches.

    Args:
        name_or_path: Folder or hub name.
        trust_remote_code: Whether Python files that lie beside it may be run.
        of_words: It will get lists of words, before which a byte-level tokenizer must put a space.

    Returns:
        The tokenizer.

    Raises:
        InputError: It cannot be loaded, knows no words, or has no padding token.
    """
    tokenizer = load_pretrained(AutoTokenizer, name_or_path, trust_remote_code)
    if of_words and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = load_pretrained(AutoTokenizer, name_or_path, trust_remote_code, add_prefix_space=True)
    check_vocabulary(tokenizer, name_or_path)
    if tokenizer.pad_token is None:
        raise InputError(f"{name_or_path} has no padding token, so texts cannot form a batch: choose an encoder")
    return tokenizer


def check_vocabulary(tokenizer: Any, name_or_path: str) -> None:
    """Refuse a tokenizer that transformers made of nothing, as it does for a folder with weights alone.

    Args:
        tokenizer: As loaded.
        name_or_path: Where it was loaded from.

    Raises:
        InputError: It has hardly an entry beside its special tokens, so that every text would be unknown to it.
    """
    # two of DeBERTa's tokens have no role by which they would count as special
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)) + 2:
        raise InputError(
            f"{name_or_path} holds no tokenizer, or one without words: save it there with "
            "`tokenizer.save_pretrained`, beside the weights"
        )


def load_classifier(
    name_or_path: str, corpus: CorpusSplits, implementation: str = "auto", trust_remote_code: bool = False
) -> Any:
    """Load a model with a fresh head for the labels of a corpus.

    Args:
        name_or_path: Folder or hub name of a pre-trained encoder.
        corpus: Gives the names of the labels and what kind they are.
        implementation: `toolkit` (ToolkitBert), `transformers`, or `auto`: toolkit for a BERT.
        trust_remote_code: Whether Python files that lie beside the model may be run.

    Returns:
        The model, in float32 as saved.

    Raises:
        InputError: Another implementation, or a model that cannot be loaded.
    """
    labels = _labels(corpus.label_names)
    return _with_head(
        CLASSIFIERS, name_or_path, implementation, trust_remote_code, problem_type=corpus.problem_type, **labels
    )


def load_tagger(
    name_or_path: str, tag_names: Sequence[str], implementation: str = "auto", trust_remote_code: bool = False
) -> Any:
    """Load a model with a fresh head that gives each token a tag.

    Args:
        name_or_path: Folder or hub name of a pre-trained encoder.
        tag_names: In the order of their ids.
        implementation: See `load_classifier`.
        trust_remote_code: See `load_classifier`.

    Returns:
        The model, in float32 as saved.

    Raises:
        InputError: As `load_classifier`.
    """
    return _with_head(TAGGERS, name_or_path, implementation, trust_remote_code, **_labels(tag_names))


def load_answerer(name_or_path: str, implementation: str = "auto", trust_remote_code: bool = False) -> Any:
    """Load a model with a fresh head that finds first and last token of an answer.

    Args:
        name_or_path: Folder or hub name of a pre-trained encoder.
        implementation: See `load_classifier`.
        trust_remote_code: See `load_classifier`.

    Returns:
        The model, in float32 as saved.

    Raises:
        InputError: As `load_classifier`.
    """
    return _with_head(ANSWERERS, name_or_path, implementation, trust_remote_code, num_labels=2)


def _labels(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _with_head(
    classes: Mapping[str, Any],
    name_or_path: str,
    implementation: str,
    trust_remote_code: bool,
    **settings: Any,
) -> Any:
    if implementation == "auto":
        implementation = "toolkit" if model_type_of(name_or_path) in ("bert", "toolkit_bert") else "transformers"
    if implementation not in classes:
        raise InputError(f"`implementation` must be auto, toolkit or transformers, got {implementation}")
    model = load_and_tell(
        classes[implementation],
        name_or_path,
        trust_remote_code,
        use_safetensors=True,
        **settings,
    )
    if implementation == "transformers":
        # their classifiers take the count of labels and ignore it, so that accumulation would multiply gradients
        model.accepts_loss_kwargs = False
        # some would be saved under the names of older checkpoints, which Trainer cannot load: the best checkpoint
        # would come back without these weights
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    return model


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
