"""Batches for masked language modeling and next-sentence prediction, the same on every layout of machines."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError
from bert_toolkit.ignored_label import IGNORED_LABEL
from bert_toolkit.pretraining.checks import require_fractions, require_special_tokens
from bert_toolkit.pretraining.keyed_random import random_bits, stream_key
from bert_toolkit.pretraining.masking import choose_tokens, choose_words, replace_tokens
from bert_toolkit.pretraining.sentence_pairs import Pair, PairBatch
from bert_toolkit.pretraining.word_boundaries import word_boundaries
from bert_toolkit.processes import rank

_INDEXED, _STREAM = range(100, 102)
_UNUSED = re.compile(r"\[unused\d+\]")


class DataCollatorForPreTraining:
    """A collator that pads examples to one batch and masks tokens for prediction.

    Takes the pairs of `NextSentencePairs`, or ordinary tokenized sentences and pairs (dicts with `input_ids`,
    optionally `token_type_ids`, `attention_mask`, `next_sentence_label`, `word_ids`). The masks of an example are a
    function of (seed, epoch, index, position): pairs carry their epoch and index; ordinary examples may have the
    keys `example_index` and `epoch` (keep them with `TrainingArguments(remove_unused_columns=False)`). Examples
    without an index get masks from a seeded stream, which depends on the order of calls and the number of workers.

    In every sequence `max(1, round(mlm_probability * n))` of its n tokens that are not special are predicted. A
    random replacement is drawn from the vocabulary without special, padding and `[unused…]` tokens.

    Args:
        tokenizer: Gives the ids of [MASK] and padding, the special tokens and the vocabulary.
        mlm_probability: Fraction of tokens to predict, in (0, 1).
        mask_replace_prob: Fraction of these that become [MASK].
        random_replace_prob: Fraction of these that become a random token; the rest stays.
        whole_word_mask: Predict all pieces of a word or none. Words are told by the tokenizer's marks (`##`, `Ġ`, `▁`;
            see `word_boundaries`), or by `word_ids` in the examples.
        pad_to_multiple_of: Round the padded length up to a multiple of this.
        seed: Of all random choices.
        next_sentence_labels: Give `next_sentence_label` where the examples have it; False for masked LM alone.
        token_type_ids: Give `token_type_ids`; False for models that have no segments, such as RoBERTa.

    Raises:
        InputError: A fraction is out of range, the tokenizer has no [MASK], no padding token or nothing but special
            tokens, or whole words cannot be told.

    Examples:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "cat", "sleeps", "wakes"]
        >>> tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        >>> collator = DataCollatorForPreTraining(tokenizer, mlm_probability=0.4, seed=1)
        >>> batch = collator([{**tokenizer("The dog sleeps", "The cat wakes"), "example_index": 0}])
        >>> tokenizer.decode(batch["input_ids"][0])
        '[CLS] the dog [MASK] [SEP] the [MASK] wakes [SEP]'
        >>> batch["labels"][0].tolist()
        [-100, -100, -100, 8, -100, -100, 7, -100, -100]
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        whole_word_mask: bool = False,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
        next_sentence_labels: bool = True,
        token_type_ids: bool = True,
    ) -> None:
        """Look up the tokenizer's vocabulary; see the class for the arguments."""
        if not 0 < mlm_probability < 1:
            raise InputError(f"`mlm_probability` must lie in (0, 1), got {mlm_probability}")
        require_fractions(mask_replace_prob=mask_replace_prob, random_replace_prob=random_replace_prob)
        if mask_replace_prob + random_replace_prob > 1 + 1e-9:
            raise InputError(
                "`mask_replace_prob` + `random_replace_prob` must not exceed 1, got "
                f"{mask_replace_prob} + {random_replace_prob}"
            )
        require_special_tokens(tokenizer, ("mask_token", "pad_token"), "masked language modeling")
        self.tokenizer = tokenizer
        self.mlm_probability = mlm_probability
        self.mask_replace_prob = mask_replace_prob
        self.random_replace_prob = random_replace_prob
        self.whole_word_mask = whole_word_mask
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        self.next_sentence_labels = next_sentence_labels
        self.token_type_ids = token_type_ids
        self._calls = 0
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        self._is_special = np.zeros(size, dtype=bool)
        self._is_special[list(tokenizer.all_special_ids)] = True
        replaceable = np.zeros(size, dtype=bool)
        replaceable[[i for token, i in vocabulary.items() if not _UNUSED.fullmatch(token)]] = True
        self._replacement_ids = np.flatnonzero(replaceable & ~self._is_special)
        if not len(self._replacement_ids):
            raise InputError("the tokenizer's vocabulary holds special tokens only: there is nothing to predict")
        self._word_boundaries = word_boundaries(tokenizer) if whole_word_mask else None

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            features: Examples; see the class.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask`, `labels` (-100 where nothing is predicted), each
            (batch_size, sequence_length) int64, and, where the examples have it, `next_sentence_label` (batch_size,).

        Raises:
            InputError: Whole words are asked for and cannot be told.
        """
        first = features[0]
        if isinstance(first, Pair) and _is_whole_batch(first.batch, features):
            batch, keys = self._from_pairs(first.batch)
            continues_word = None
        else:
            batch, keys, continues_word = self._from_examples(features)
        input_ids = batch["input_ids"]
        candidates = (batch["attention_mask"] > 0) & ~self._is_special[input_ids]
        if self.whole_word_mask:
            if continues_word is None:
                continues_word = self._continuations(input_ids)
            targets = choose_words(candidates, continues_word, keys, self.mlm_probability)
        else:
            targets = choose_tokens(candidates, keys, self.mlm_probability)
        batch["labels"] = np.where(targets, input_ids, IGNORED_LABEL)
        batch["input_ids"] = replace_tokens(
            input_ids,
            targets,
            keys,
            self.tokenizer.mask_token_id,
            self._replacement_ids,
            self.mask_replace_prob,
            self.random_replace_prob,
        )
        if not self.token_type_ids:
            del batch["token_type_ids"]
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _continuations(self, input_ids: np.ndarray) -> np.ndarray:
        if self._word_boundaries is None:
            raise InputError(
                "`whole_word_mask` needs a tokenizer that marks words (`##` of WordPiece, `Ġ` of byte-level BPE, `▁` "
                f"of SentencePiece, whole words), or `word_ids` in the examples; {type(self.tokenizer).__name__} does "
                "not: add word_ids, or mask single tokens"
            )
        return self._word_boundaries.continues_word(input_ids)

    def _padded_width(self, longest: int) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-longest // multiple) * multiple

    def _from_pairs(self, pairs: PairBatch) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Arrays of the batch without masks, and a random key for each example."""
        longest = pairs.input_ids.shape[1]
        width = self._padded_width(longest)
        input_ids, token_type_ids = pairs.input_ids, pairs.token_type_ids
        if width > longest:
            missing = ((0, 0), (0, width - longest))
            input_ids = np.pad(input_ids, missing, constant_values=self.tokenizer.pad_token_id)
            token_type_ids = np.pad(token_type_ids, missing)
        batch = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "attention_mask": (np.arange(width) < pairs.lengths[:, None]).astype(np.int64),
        }
        if self.next_sentence_labels:
            batch["next_sentence_label"] = pairs.next_sentence_label
        return batch, random_bits(stream_key(_INDEXED, self.seed, pairs.epoch), pairs.example_index)

    def _from_examples(
        self, features: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
        """As `_from_pairs`, and where `word_ids` say that a token continues a word (None without them)."""
        lengths = [len(feature["input_ids"]) for feature in features]
        shape = (len(features), self._padded_width(max(max(lengths), 1)))
        batch = {
            "input_ids": np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
            "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
        }
        has_words = "word_ids" in features[0]
        continues_word = np.zeros(shape, dtype=bool)
        for row, (feature, length) in enumerate(zip(features, lengths, strict=True)):
            for name in ("input_ids", "token_type_ids", "attention_mask"):
                if name in feature:
                    batch[name][row, :length] = feature[name]
            if has_words:
                words = np.array([-1 if word is None else word for word in feature["word_ids"]])
                continues_word[row, 1:length] = words[1:] == words[:-1]
        if self.next_sentence_labels and "next_sentence_label" in features[0]:
            batch["next_sentence_label"] = np.array([int(f["next_sentence_label"]) for f in features])
        return batch, self._keys_of(features), continues_word if has_words else None

    def _keys_of(self, features: Sequence[Mapping[str, Any]]) -> np.ndarray:
        if isinstance(features[0], Pair) or "example_index" in features[0]:
            places = [
                (f.epoch, f.example_index)
                if isinstance(f, Pair)
                else (int(f.get("epoch", 0)), int(f["example_index"]))
                for f in features
            ]
            return np.concatenate(
                [random_bits(stream_key(_INDEXED, self.seed, epoch), index) for epoch, index in places]
            )
        worker = torch.utils.data.get_worker_info()
        # a worker's seed is new in every epoch, so masks are too although the worker counts its calls from 0
        key = stream_key(
            _STREAM,
            self.seed,
            worker.seed if worker else 0,
            rank(),
            self._calls,
        )
        self._calls += 1
        return random_bits(key, np.arange(len(features)))


def _is_whole_batch(pairs: PairBatch, features: Sequence[Mapping[str, Any]]) -> bool:
    return len(features) == len(pairs.lengths) and all(
        isinstance(feature, Pair) and feature.batch is pairs and feature.row == row
        for row, feature in enumerate(features)
    )
