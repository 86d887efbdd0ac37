"""Sentence pairs for next-sentence prediction, made from documents as a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError
from bert_toolkit.pretraining.checks import require_fractions, require_special_tokens
from bert_toolkit.pretraining.corpus_remarks import corpus_remarks
from bert_toolkit.pretraining.keyed_random import random_below, random_bits, random_fraction, stream_key
from bert_toolkit.pretraining.segments import SegmentCutter
from bert_toolkit.pretraining.sentence_encoder import tokenizer_fingerprint
from bert_toolkit.pretraining.tokenized_documents import TokenizedDocuments

MINIMUM_LENGTH = 8
_BLOCK = 1 << 18  # sentences or pairs that are computed at once while an epoch is planned
_SORTED_GROUPS = 50  # groups of equal length are made within this many groups of shuffled pairs

# purposes, so that no two kinds of decision share a random number; segments.py has the others
_FIRST_DOCUMENT, _LABEL_PHASE, _LABEL_SWAP, _ORDER, _GROUP_ORDER = range(5)


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs of one batch as padded arrays.

    Attributes:
        input_ids: (batch_size, longest) int64, `[CLS] A [SEP] B [SEP]` and padding.
        token_type_ids: (batch_size, longest) int64, 1 for B and the separator after it.
        lengths: (batch_size,) int64 tokens without padding.
        next_sentence_label: (batch_size,) int64, 0 = B follows A, 1 = B is random.
        example_index: (batch_size,) int64 index of each pair in its epoch.
        epoch: The epoch that the pairs belong to.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray
    next_sentence_label: np.ndarray
    example_index: np.ndarray
    epoch: int


class Pair(Mapping[str, Any]):
    """One pair: `input_ids`, `token_type_ids`, `attention_mask` (lists) and `next_sentence_label` (int).

    It is a row of the `PairBatch` that it was made with, which `DataCollatorForPreTraining` takes whole. It is a
    Mapping and no dict, because Trainer strips a dict of everything that is not an argument of the model, and masks
    need `example_index` and `epoch`.

    Args:
        batch: The pairs that were made together.
        row: Which of them, from 0.
    """

    __slots__ = ("batch", "row")
    _KEYS = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label")

    def __init__(self, batch: PairBatch, row: int) -> None:
        """Point at a row.

        Args:
            batch: The pairs that were made together.
            row: Which of them.
        """
        self.batch = batch
        self.row = row

    @property
    def example_index(self) -> int:
        """The index of the pair in its epoch, from 0."""
        return int(self.batch.example_index[self.row])

    @property
    def epoch(self) -> int:
        """The epoch that the pair belongs to."""
        return self.batch.epoch

    def __getitem__(self, key: str) -> Any:
        """The value of one of the four keys."""
        length = int(self.batch.lengths[self.row])
        if key == "attention_mask":
            return [1] * length
        if key == "next_sentence_label":
            return int(self.batch.next_sentence_label[self.row])
        if key in self._KEYS:
            return getattr(self.batch, key)[self.row, :length].tolist()
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        """The four keys."""
        return iter(self._KEYS)

    def __len__(self) -> int:
        """Number of keys: 4."""
        return len(self._KEYS)


class NextSentencePairs(torch.utils.data.Dataset[Pair]):
    """Map-style dataset of sentence pairs `[CLS] A [SEP] B [SEP]` with a next-sentence label.

    Segments are whole sentences packed up to a target length, as in Devlin et al. (2019), appendix A.2, and
    google-research/bert (create_pretraining_data.py), with these differences. Half of the labels are 1 by
    construction: labels are dealt out before segments are made, and every chunk has at least two sentences, so that
    either label fits (the reference forces a chunk of one sentence to be random). A random B is drawn uniformly from
    the sentences of all *other* documents, so it is never from A's document, and it is as long as the B that it
    replaces, so that length does not give the label away. Over-long pairs lose tokens on the longer side, all at its
    front or all at its back, at random.

    An epoch walks the corpus once, from a random document on, and its pairs are shuffled. The dataset needs no
    shuffling sampler: use it with `TrainingArguments(train_sampling_strategy="sequential")`. (With the default
    sampler, Accelerate does not forward the epoch to the dataset on several processes or after a resume in
    mid-epoch, and epochs would repeat their pairs and masks.)

    A document of one sentence can only give a random B. Without random B (`random_next_probability=0`, for masked
    words alone) it is a sequence of its own, `[CLS] A [SEP]`.

    Args:
        documents: Documents, each a list of sentences (str); rows with a column "sentences", such as a
            `datasets.Dataset`; or `TokenizedDocuments`. At least two, one of them with two sentences or more; without
            random B one sentence is enough.
        tokenizer: Gives [CLS], [SEP], the padding id and, for text, the token ids.
        max_length: Longest pair in tokens, special tokens included; at least 8.
        short_sequence_probability: Fraction of pairs with a shorter target, uniform from 2 tokens to the longest.
        random_next_probability: Fraction of pairs whose B is random.
        seed: With the epoch and the index it decides a pair.
        group_size: Makes runs of this many pairs nearly equally long (within 50 shuffled runs), to save padding; take
            the pairs of one optimizer step. 1 leaves the order random.

    Raises:
        InputError: A parameter is out of range, a special token is missing, or the corpus is empty, has one document,
            or only documents of one sentence.

    Examples:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "cat", "sleeps", "wakes"]
        >>> tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        >>> documents = [["The dog sleeps", "The dog wakes"], ["The cat wakes", "The cat sleeps"]]
        >>> pairs = NextSentencePairs(documents, tokenizer, max_length=16, seed=0)
        >>> for pair in pairs:
        ...     print(tokenizer.decode(pair["input_ids"]), pair["next_sentence_label"])
        [CLS] the cat wakes [SEP] the cat sleeps [SEP] 0
        [CLS] the dog sleeps [SEP] the cat wakes [SEP] 1
        [CLS] the dog sleeps [SEP] the dog wakes [SEP] 0
        [CLS] the cat wakes [SEP] the dog wakes [SEP] 1
    """

    def __init__(
        self,
        documents: TokenizedDocuments | Sequence[Sequence[str]] | Sequence[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 128,
        short_sequence_probability: float = 0.1,
        random_next_probability: float = 0.5,
        seed: int = 0,
        group_size: int = 1,
    ) -> None:
        """Tokenize the documents if they are text, and plan epoch 0; see the class for the arguments."""
        if max_length < MINIMUM_LENGTH:
            raise InputError(
                f"`max_length` must be at least {MINIMUM_LENGTH} tokens (three are special), got {max_length}"
            )
        require_fractions(
            short_sequence_probability=short_sequence_probability, random_next_probability=random_next_probability
        )
        if group_size < 1:
            raise InputError(f"`group_size` must be at least 1 pair, got {group_size}")
        require_special_tokens(tokenizer, ("cls_token", "sep_token", "pad_token"), "a sentence pair")
        if not isinstance(documents, TokenizedDocuments):
            documents = TokenizedDocuments.from_documents(documents, tokenizer)
        elif documents.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
            raise InputError(
                "the documents were tokenized with another tokenizer than the one given: tokenize them again"
            )
        if not len(documents):
            raise InputError("the corpus is empty: no document has a token; check the documents and the tokenizer")
        if random_next_probability > 0 and len(documents) < 2:
            raise InputError(
                "next-sentence pairs need at least 2 documents, got 1: a random B must come from another document; "
                "cut the text into several documents (recipes/pretrain.py: --documents_split)"
            )
        if random_next_probability > 0 and len(documents) == len(documents.sentence_starts) - 1:
            raise InputError(
                f"all {len(documents)} documents have one sentence, so no B follows any A: give documents of several "
                "sentences, check how sentences are split, or learn masked words alone (random_next_probability=0; "
                "recipes/pretrain.py: --objective mlm)"
            )
        self.documents = documents
        self.random_next_probability = random_next_probability
        self.seed = seed
        self.group_size = group_size
        self._cutter = SegmentCutter(documents, max_length, short_sequence_probability, seed)
        self._cls, self._sep, self._pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        # shared memory, so that persistent workers see a later epoch
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._plan_epoch = -1
        # of every pair of the planned epoch: the sentence at which its chunk starts, and whether its B is random
        self._starts = np.zeros(0, dtype=np.int64)
        self._random_next = np.zeros(0, dtype=bool)
        self._length = len(self._walk(0, None))
        self._make_plan(0)

    def __len__(self) -> int:
        """Pairs in an epoch, the same in all epochs: as many as epoch 0 makes of the corpus."""
        return self._length

    @property
    def max_length(self) -> int:
        """The largest number of tokens that a pair may have, special tokens included."""
        return self._cutter.max_length

    @property
    def epoch(self) -> int:
        """The epoch whose pairs the dataset yields."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Accelerate's data loaders call it. Workers that are already running follow.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self._epoch[0] = epoch
        self._make_plan(epoch)

    @property
    def random_next_share(self) -> float:
        """The realized fraction of random B in the present epoch, from 0 to 1."""
        self._make_plan(self.epoch)
        return float(self._random_next.mean())

    @property
    def remarks(self) -> list[str]:
        """The parts of the corpus that pairs leave unused, and why, in plain sentences; empty if all is well."""
        return corpus_remarks(self.documents, self.max_length, self.random_next_probability > 0)

    def lengths(self) -> np.ndarray:
        """Return how many tokens each pair of the present epoch has.

        Returns:
            (len(self),) int64 in the order of the pairs, special tokens included.
        """
        self._make_plan(self.epoch)
        return self._pair_lengths(self._starts, self._random_next, self.epoch)

    def __getitem__(self, index: int) -> Pair:
        """One pair.

        Args:
            index: From 0, or from -1 backwards.

        Returns:
            The pair with this index in the present epoch.

        Raises:
            IndexError: There is no such index.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pairs")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Make the pairs of one batch together; torch's data loader calls it.

        Args:
            indices: Indices from 0.

        Returns:
            The pairs, rows of one `PairBatch` of shape (B, L), L being the length of the longest.
        """
        epoch = self.epoch
        self._make_plan(epoch)
        index = np.asarray(indices, dtype=np.int64)
        random_next = self._random_next[index]
        segments = self._cutter.segments(self._starts[index], random_next, epoch)
        a_begin, a_length, b_begin, _ = segments
        lengths = segments.pair_length
        # say of every position of the batch which token of the corpus stands there: A begins at position 1, B after
        # A and its separator
        position = np.arange(int(lengths.max()))
        in_b = position > (a_length + 1)[:, None]  # (B, L)
        source = position + np.where(in_b, (b_begin - a_length - 2)[:, None], (a_begin - 1)[:, None])
        np.clip(source, 0, len(self.documents.tokens) - 1, out=source)
        input_ids = self.documents.tokens[source].astype(np.int64)
        # put special tokens and padding where the corpus has no say
        rows = np.arange(len(index))
        input_ids[:, 0] = self._cls
        input_ids[rows, a_length + 1] = self._sep
        input_ids[rows, lengths - 1] = self._sep
        padding = position >= lengths[:, None]
        input_ids[padding] = self._pad
        in_b &= ~padding
        batch = PairBatch(input_ids, in_b.astype(np.int64), lengths, random_next.astype(np.int64), index, epoch)
        return [Pair(batch, row) for row in range(len(index))]

    def _make_plan(self, epoch: int) -> None:
        """Decide for every index of the epoch the sentence at which its chunk starts and its label."""
        if self._plan_epoch == epoch:
            return
        starts = self._walk(epoch, self._length)
        random_next = self._labels(epoch, 0, len(starts))
        # shuffle by random numbers as sort keys
        order = np.argsort(random_bits(stream_key(_ORDER, self.seed, epoch), np.arange(len(starts))))
        if self.group_size > 1:
            order = self._group_by_length(order, self._pair_lengths(starts, random_next, epoch), epoch)
        self._starts = starts[order]
        self._random_next = random_next[order]
        self._plan_epoch = epoch

    def _labels(self, epoch: int, begin: int, end: int) -> np.ndarray:
        """Labels of the pairs `begin` to `end` of the walk: (end - begin,) bool.

        `begin` is even, and `end` is even or the last of the epoch. The running fraction of True never strays from
        the probability by more than two pairs.
        """
        # label i is True where the line i * probability + phase passes a whole number
        phase = random_fraction(random_bits(stream_key(_LABEL_PHASE, self.seed, epoch), 0))
        labels = np.diff(np.floor(np.arange(begin, end + 1) * self.random_next_probability + phase)) > 0
        # swap the two labels of every second couple at random, so that labels do not alternate
        couples = labels[: len(labels) // 2 * 2].reshape(-1, 2)
        couple = np.arange(begin // 2, begin // 2 + len(couples))
        swap = random_bits(stream_key(_LABEL_SWAP, self.seed, epoch), couple) & np.uint64(1) > 0
        couples[swap] = couples[swap][:, ::-1]
        return labels

    def _walk(self, epoch: int, count: int | None) -> np.ndarray:
        """Walk the corpus and return the sentences at which chunks start, in walking order.

        After a pair with a random B, the walk goes on after A, so the sentences that B would have had are put back.

        Args:
            epoch: Decides the first document, the labels and the chunks.
            count: Pairs to make, more than one round if necessary. None: one round.
        """
        document_starts = self.documents.document_starts
        n_sentences = int(document_starts[-1])
        first_bits = random_bits(stream_key(_FIRST_DOCUMENT, self.seed, epoch), 0)
        first = int(document_starts[int(random_below(first_bits, len(self.documents))[0])])
        wanted = n_sentences if count is None else count
        blocks: list[np.ndarray] = []
        made = 0
        while made < wanted:
            # one round: from the first document to the end, then from the beginning to the first document
            for low, high in ((first, n_sentences), (0, first)):
                sentence = low
                while sentence < high and made < wanted:
                    # say for all sentences of a block at once where the walk would go on, by the label of the pair
                    block_begin, block_end = sentence, min(sentence + _BLOCK, high)
                    usable, goes_on = self._next_sentences(np.arange(block_begin, block_end), epoch)
                    first_label = made // 2 * 2
                    labels = self._labels(epoch, first_label, min(first_label + _BLOCK + 2, wanted)).tobytes()
                    # then walk through the block, one step per pair
                    starts: list[int] = []
                    while sentence < block_end and made < wanted:
                        place = sentence - block_begin
                        label = 0
                        if usable[place]:
                            label = labels[made - first_label]
                            starts.append(sentence)
                            made += 1
                        sentence = goes_on[label][place]
                    blocks.append(np.array(starts, dtype=np.int64))
            if count is None:
                break
        return np.concatenate(blocks)

    def _next_sentences(self, sentence: np.ndarray, epoch: int) -> tuple[list[bool], tuple[list[int], list[int]]]:
        """Whether a chunk can start at each sentence, and where the walk goes on: by label 0 (B follows A) and 1."""
        document_begin, document_end = self.documents.bounds_of_document(sentence)
        usable = (document_end - document_begin > 1) | (self.random_next_probability == 0)
        begin, split, end = self._cutter.chunks(sentence, epoch)
        after_b = np.where(usable, end, document_end)
        # a chunk that took the sentence before it along ends the document either way
        after_a = np.where(begin < sentence, end, split)
        return usable.tolist(), (after_b.tolist(), after_a.tolist())

    def _pair_lengths(self, starts: np.ndarray, random_next: np.ndarray, epoch: int) -> np.ndarray:
        """Tokens of the pairs of these chunks, in blocks, so that memory does not grow: (B,) int64."""
        lengths = np.empty(len(starts), dtype=np.int64)
        for i in range(0, len(starts), _BLOCK):
            segments = self._cutter.segments(starts[i : i + _BLOCK], random_next[i : i + _BLOCK], epoch)
            lengths[i : i + _BLOCK] = segments.pair_length
        return lengths

    def _group_by_length(self, order: np.ndarray, lengths: np.ndarray, epoch: int) -> np.ndarray:
        """Sort within windows of shuffled pairs, then shuffle the groups; the last, smaller group stays last."""
        size = self.group_size
        window = size * _SORTED_GROUPS
        order = order.copy()
        for begin in range(0, len(order), window):
            part = order[begin : begin + window]
            part[:] = part[np.argsort(lengths[part], kind="stable")]
        n_groups = len(order) // size
        key = stream_key(_GROUP_ORDER, self.seed, epoch)
        groups = np.argsort(random_bits(key, np.arange(n_groups)))
        return np.concatenate(
            [order[: n_groups * size].reshape(n_groups, size)[groups].ravel(), order[n_groups * size :]]
        )
