"""Sentence pairs for next-sentence prediction, made from documents as a pure function of (seed, epoch, index)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bert_toolkit.errors import InputError
from bert_toolkit.pretraining.keyed_random import random_below, random_bits, random_share, stream_key
from bert_toolkit.pretraining.tokenized_documents import TokenizedDocuments, tokenizer_fingerprint

MINIMUM_LENGTH = 8
_BLOCK = 1 << 18  # sentences whose chunks are computed at once while an epoch is planned
_SORTED_GROUPS = 50  # groups of equal length are made within this many groups of shuffled pairs

# purposes, so that no two kinds of decision share a random number
_FIRST_DOCUMENT, _LABEL_PHASE, _LABEL_SWAP, _ORDER, _GROUP_ORDER = range(5)
_IS_SHORT, _SHORT_TARGET, _SPLIT, _OTHER_START, _TRIM_A, _TRIM_B = range(5, 11)


class PairBatch:
    """Pairs of one batch as padded arrays.

    Attributes:
        input_ids: (batch_size, longest) int64, `[CLS] A [SEP] B [SEP]` and padding.
        token_type_ids: (batch_size, longest) int64, 1 for B and the separator behind it.
        lengths: (batch_size,) int64 tokens without padding.
        next_sentence_label: (batch_size,) int64, 0 = B follows A, 1 = B is random.
        example_index: (batch_size,) int64 index of each pair in its epoch.
        epoch: The epoch that the pairs belong to.
    """

    __slots__ = ("input_ids", "token_type_ids", "lengths", "next_sentence_label", "example_index", "epoch")

    def __init__(self, input_ids, token_type_ids, lengths, next_sentence_label, example_index, epoch):
        self.input_ids = input_ids
        self.token_type_ids = token_type_ids
        self.lengths = lengths
        self.next_sentence_label = next_sentence_label
        self.example_index = example_index
        self.epoch = epoch


class Pair(Mapping):
    """One pair: `input_ids`, `token_type_ids`, `attention_mask` (lists) and `next_sentence_label` (int).

    It is a row of the `PairBatch` that it was made with, which `DataCollatorForPreTraining` takes whole. It is a
    Mapping and no dict, because Trainer strips a dict of everything that is not an argument of the model, and masks
    need `example_index` and `epoch`.
    """

    __slots__ = ("batch", "row")
    _KEYS = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label")

    def __init__(self, batch: PairBatch, row: int):
        self.batch = batch
        self.row = row

    @property
    def example_index(self) -> int:
        return int(self.batch.example_index[self.row])

    @property
    def epoch(self) -> int:
        return self.batch.epoch

    def __getitem__(self, key: str) -> Any:
        length = int(self.batch.lengths[self.row])
        if key == "attention_mask":
            return [1] * length
        if key == "next_sentence_label":
            return int(self.batch.next_sentence_label[self.row])
        if key in self._KEYS:
            return getattr(self.batch, key)[self.row, :length].tolist()
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._KEYS)

    def __len__(self) -> int:
        return len(self._KEYS)


class NextSentencePairs(torch.utils.data.Dataset):
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

    Args:
        documents: Documents, each a list of sentences (str); rows with a column "sentences", such as a
            `datasets.Dataset`; or `TokenizedDocuments`. At least two, one of them with two sentences or more.
        tokenizer: Gives [CLS], [SEP], the padding id and, for text, the token ids.
        max_length: Longest pair in tokens, special tokens included; at least 8.
        short_sequence_probability: Share of pairs with a shorter target, uniform from 2 tokens to the longest.
        random_next_probability: Share of pairs whose B is random.
        seed: With the epoch and the index it decides a pair.
        group_size: Makes runs of this many pairs nearly equally long (within 50 shuffled runs), to save padding; take
            the pairs of one optimizer step. 1 leaves the order random.

    Raises:
        InputError: A parameter is out of range, a special token is missing, or the corpus is empty, has one document,
            or only documents of one sentence.
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
    ):
        if max_length < MINIMUM_LENGTH:
            raise InputError(
                f"`max_length` must be at least {MINIMUM_LENGTH} tokens (three are special), got {max_length}"
            )
        for name, value in (
            ("short_sequence_probability", short_sequence_probability),
            ("random_next_probability", random_next_probability),
        ):
            if not 0 <= value <= 1:
                raise InputError(f"`{name}` must lie in [0, 1], got {value}")
        if group_size < 1:
            raise InputError(f"`group_size` must be at least 1 pair, got {group_size}")
        for name in ("cls_token", "sep_token", "pad_token"):
            if getattr(tokenizer, name) is None:
                raise InputError(
                    f"the tokenizer has no `{name}`, which a sentence pair needs: "
                    f"set it with tokenizer.add_special_tokens({{'{name}': ...}})"
                )
        if not isinstance(documents, TokenizedDocuments):
            documents = TokenizedDocuments.from_documents(documents, tokenizer)
        elif documents.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
            raise InputError(
                "the documents were tokenized with another tokenizer than the one given: tokenize them again"
            )
        if len(documents) < (2 if random_next_probability > 0 else 1):
            raise InputError(
                f"next-sentence pairs need at least 2 documents, got {len(documents)}: a random B must come from "
                "another document; cut the text into several documents (recipes/pretrain.py: --documents_split)"
            )
        self.documents = documents
        self.max_length = max_length
        self.short_sequence_probability = short_sequence_probability
        self.random_next_probability = random_next_probability
        self.seed = seed
        self.group_size = group_size
        self._cls, self._sep, self._pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
        if int(np.diff(documents.document_starts).max()) < 2:
            raise InputError(
                f"all {len(documents)} documents have one sentence, so no B follows any A: give documents of several "
                "sentences, or check how sentences are split"
            )
        # shared memory, so that persistent workers see a later epoch
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._plan_epoch = -1
        self._starts = np.zeros(0, dtype=np.int64)
        self._random_next = np.zeros(0, dtype=bool)
        self._length = len(self._walk(0, None))
        self._make_plan(0)

    def __len__(self) -> int:
        """Pairs in an epoch, the same in all epochs: as many as epoch 0 makes of the corpus."""
        return self._length

    @property
    def epoch(self) -> int:
        """The epoch whose pairs the dataset yields."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Accelerate's data loaders call it. Workers that are already running follow."""
        self._epoch[0] = epoch
        self._make_plan(epoch)

    @property
    def random_next_share(self) -> float:
        """Realised share of random B in the present epoch."""
        self._make_plan(self.epoch)
        return float(self._random_next.mean())

    def lengths(self) -> np.ndarray:
        """Tokens of every pair of the present epoch in order, special tokens included: (len(self),) int64."""
        self._make_plan(self.epoch)
        return np.concatenate(
            [
                self._segments(self._starts[i : i + _BLOCK], self._random_next[i : i + _BLOCK], self.epoch)[-1]
                for i in range(0, len(self), _BLOCK)
            ]
        )

    def __getitem__(self, index: int) -> Pair:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} pairs")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Make the pairs of one batch together; torch's data loader calls it."""
        epoch = self.epoch
        self._make_plan(epoch)
        index = np.asarray(indices, dtype=np.int64)
        random_next = self._random_next[index]
        a_begin, a_length, b_begin, b_length, lengths = self._segments(self._starts[index], random_next, epoch)
        position = np.arange(int(lengths.max()))
        behind_a = (a_length + 1)[:, None]
        last = (lengths - 1)[:, None]
        in_b = position > behind_a  # (B, L)
        source = position + np.where(in_b, (b_begin - a_length - 2)[:, None], (a_begin - 1)[:, None])
        np.clip(source, 0, len(self.documents.tokens) - 1, out=source)
        input_ids = self.documents.tokens[source].astype(np.int64)
        input_ids[:, 0] = self._cls
        rows = np.arange(len(index))
        input_ids[rows, a_length + 1] = self._sep
        input_ids[rows, lengths - 1] = self._sep
        padding = position > last
        input_ids[padding] = self._pad
        in_b &= ~padding
        batch = PairBatch(input_ids, in_b.astype(np.int64), lengths, random_next.astype(np.int64), index, epoch)
        return [Pair(batch, row) for row in range(len(index))]

    def _make_plan(self, epoch: int) -> None:
        """Decide for every index of the epoch the sentence at which its chunk starts and its label."""
        if self._plan_epoch == epoch:
            return
        starts = self._walk(epoch, self._length)
        random_next = self._labels(epoch, len(starts))
        order = np.argsort(random_bits(stream_key(_ORDER, self.seed, epoch), np.arange(len(starts))))
        if self.group_size > 1:
            lengths = np.concatenate(
                [
                    self._segments(starts[i : i + _BLOCK], random_next[i : i + _BLOCK], epoch)[-1]
                    for i in range(0, len(starts), _BLOCK)
                ]
            )
            order = self._group_by_length(order, lengths, epoch)
        self._starts = starts[order]
        self._random_next = random_next[order]
        self._plan_epoch = epoch

    def _labels(self, epoch: int, count: int) -> np.ndarray:
        """Labels whose running share of True never strays from the probability by more than two pairs."""
        phase = random_share(random_bits(stream_key(_LABEL_PHASE, self.seed, epoch), 0))
        labels = np.diff(np.floor(np.arange(count + 1) * self.random_next_probability + phase)) > 0
        pairs = labels[: count // 2 * 2].reshape(-1, 2)
        swap = random_bits(stream_key(_LABEL_SWAP, self.seed, epoch), np.arange(len(pairs))) & np.uint64(1) > 0
        pairs[swap] = pairs[swap][:, ::-1]
        return labels

    def _walk(self, epoch: int, count: int | None) -> np.ndarray:
        """Walk the corpus and return the sentences at which chunks start, in walking order.

        After a pair with a random B, the walk goes on behind A, so the sentences that B would have had are put back.

        Args:
            epoch: Decides the first document, the labels and the chunks.
            count: Pairs to make, more than one round if necessary. None: one round.
        """
        document_starts = self.documents.document_starts
        n_sentences = int(document_starts[-1])
        first_bits = random_bits(stream_key(_FIRST_DOCUMENT, self.seed, epoch), 0)
        first = int(document_starts[int(random_below(first_bits, len(self.documents))[0])])
        wanted = n_sentences if count is None else count
        labels = self._labels(epoch, wanted).tobytes()
        starts: list[int] = []
        blocks: list[np.ndarray] = []
        made = 0
        while made < wanted:
            for low, high in ((first, n_sentences), (0, first)):
                sentence = low
                while sentence < high and made < wanted:
                    block_end = min(sentence + _BLOCK, high)
                    block = np.arange(sentence, block_end)
                    usable, behind_chunk, behind_a = self._next_sentences(block, epoch)
                    usable, behind = usable.tolist(), (behind_chunk.tolist(), behind_a.tolist())
                    block_begin = sentence
                    starts = []
                    while sentence < block_end and made < wanted:
                        i = sentence - block_begin
                        if usable[i]:
                            starts.append(sentence)
                            sentence = behind[labels[made]][i]
                            made += 1
                        else:
                            sentence = behind[0][i]
                    blocks.append(np.array(starts, dtype=np.int64))
            if count is None:
                break
        return np.concatenate(blocks)

    def _next_sentences(self, sentence: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        document_starts = self.documents.document_starts
        document = np.searchsorted(document_starts, sentence, side="right") - 1
        document_end = document_starts[document + 1]
        usable = document_end - document_starts[document] > 1
        begin, split, end = self._chunks(sentence, epoch)
        # a chunk that borrowed the sentence before it ends the document either way
        return usable, np.where(usable, end, document_end), np.where(begin < sentence, end, split)

    def _chunks(self, sentence: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First sentence of A, first of B, and end of the chunk that the walk makes at each sentence: (B,) each."""
        document_starts = self.documents.document_starts
        sentence_starts = self.documents.sentence_starts
        document = np.searchsorted(document_starts, sentence, side="right") - 1
        document_end = document_starts[document + 1]
        longest = self.max_length - 3
        short_bits, target_bits, split_bits = self._draws((_IS_SHORT, _SHORT_TARGET, _SPLIT), sentence, epoch)
        is_short = random_share(short_bits) < self.short_sequence_probability
        target = np.where(is_short, 2 + random_below(target_bits, longest - 1), longest)
        # the last sentence of a document takes the one before it along, so that it has an A and a B
        begin = np.maximum(sentence - (sentence + 1 == document_end), document_starts[document])
        end = np.searchsorted(sentence_starts, sentence_starts[begin] + target)
        end = np.minimum(np.maximum(end, begin + 2), document_end)
        split = begin + 1 + random_below(split_bits, np.maximum(end - begin - 1, 1))
        return begin, split, end

    def _draws(self, purposes: tuple[int, ...], sentence: np.ndarray, epoch: int) -> np.ndarray:
        """64 random bits for each purpose and sentence: (purposes, B)."""
        keys = np.array([stream_key(purpose, self.seed, epoch) for purpose in purposes])
        return random_bits(keys, sentence)

    def _segments(
        self, sentence: np.ndarray, random_next: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where A and B begin in the tokens, their lengths after trimming, and the length of the pair: (B,) each."""
        document_starts = self.documents.document_starts
        sentence_starts = self.documents.sentence_starts
        begin, split, end = self._chunks(sentence, epoch)
        document = np.searchsorted(document_starts, begin, side="right") - 1
        own_begin, own_end = document_starts[document], document_starts[document + 1]
        a_begin, b_begin, b_end = sentence_starts[begin], sentence_starts[split], sentence_starts[end]
        a_length, b_length = b_begin - a_begin, b_end - b_begin
        # a sentence of another document: the own one is left out of the range, so nothing is drawn twice
        n_sentences = int(document_starts[-1])
        other_bits, *front_bits = self._draws((_OTHER_START, _TRIM_A, _TRIM_B), sentence, epoch)
        other = random_below(other_bits, n_sentences - (own_end - own_begin))
        other += np.where(other >= own_begin, own_end - own_begin, 0)
        other = np.minimum(other, n_sentences - 1)  # a corpus of one document has no other, and needs none
        other_document_end = document_starts[np.searchsorted(document_starts, other, side="right")]
        other_begin = sentence_starts[other]
        # whole sentences that come nearest to the length of the B that is replaced, at least one
        above = np.searchsorted(sentence_starts, other_begin + b_length)
        above = np.minimum(np.maximum(above, other + 1), other_document_end)
        below = np.maximum(above - 1, other + 1)
        wanted_end = other_begin + b_length
        nearer_below = np.abs(sentence_starts[below] - wanted_end) < np.abs(sentence_starts[above] - wanted_end)
        other_end = sentence_starts[np.where(nearer_below, below, above)]
        b_begin = np.where(random_next, other_begin, b_begin)
        b_length = np.where(random_next, other_end - other_begin, b_length)
        # the longer side loses tokens until both are equal, then both in turn
        excess = np.maximum(a_length + b_length - (self.max_length - 3), 0)
        cut_a = np.clip(a_length - b_length, 0, excess)
        cut_b = np.clip(b_length - a_length, 0, excess)
        rest = excess - cut_a - cut_b
        cut_a += rest // 2
        cut_b += rest - rest // 2
        for bits, first_token, cut in zip(front_bits, (a_begin, b_begin), (cut_a, cut_b), strict=True):
            first_token += np.where(bits & np.uint64(1), cut, 0)
        a_length = a_length - cut_a
        b_length = b_length - cut_b
        return a_begin, a_length, b_begin, b_length, a_length + b_length + 3

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
