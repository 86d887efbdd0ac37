"""Real text for the programs: sentences of presidents' speeches, linguists' examples, and tokenizers for them."""

from __future__ import annotations

import atexit
import random
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@cache
def minilm_folder() -> Path:
    """Folder of the pre-trained weights of the `offline` extra."""
    from bert_toolkit.training.pretrained import offline_weights

    return offline_weights()


@cache
def minilm_tokenizer() -> PreTrainedTokenizerBase:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(minilm_folder())


@cache
def small_minilm_folder() -> Path:
    """A folder with the lower half of MiniLM's layers and the word pieces that the texts hold: a third the size."""
    import tempfile

    from transformers import BertModel

    tokenizer = minilm_tokenizer()
    texts = [text for _, text in spoken()[:8000]] + linguists_examples()[0]
    counts = Counter(i for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in ids)
    kept = [*(tokenizer.convert_tokens_to_ids(SPECIAL)), *sorted(i for i, count in counts.items() if count > 1)]
    body = BertModel.from_pretrained(minilm_folder(), num_hidden_layers=3, add_pooling_layer=False)
    embeddings = body.embeddings.word_embeddings
    embeddings.weight = nn.Parameter(embeddings.weight[kept].detach().clone())
    body.config.vocab_size = embeddings.num_embeddings = len(kept)
    folder = Path(tempfile.mkdtemp(prefix="small_minilm_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    body.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(tokenizer.convert_ids_to_tokens(kept))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


@cache
def small_minilm_tokenizer() -> PreTrainedTokenizerBase:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(small_minilm_folder())


@cache
def speeches() -> list[tuple[int, list[str]]]:
    """Year and sentences of every speech on the State of the Union."""
    from bert_toolkit.data.documents import corpus_files, sentences_of, state_of_the_union_folder

    return [
        (int(file.name[:4]), sentences_of(file.read_text(encoding="utf-8"))[:120])
        for file in corpus_files(state_of_the_union_folder())
    ]


@cache
def spoken(shortest: int = 6, longest: int = 16) -> list[tuple[int, str]]:
    """Year and sentence of speeches, of so many words, in an order without meaning."""
    rows = [
        (year, sentence)
        for year, sentences in speeches()
        for sentence in sentences
        if shortest <= len(sentence.split()) <= longest
    ]
    random.Random(0).shuffle(rows)
    return rows


@cache
def linguists_examples() -> tuple[list[str], list[int]]:
    """Sentences of the bundled sample and whether linguists accept them."""
    from bert_toolkit.data.cola import SAMPLE_DIR, read_cola_file

    rows = read_cola_file(SAMPLE_DIR / "in_domain_train.tsv")
    return rows["sentence"][:], rows["label"][:]


@cache
def word_tokenizer(size: int = 1000) -> BertTokenizer:
    """Words of the speeches, the most frequent ones, with BERT's special tokens."""
    words = Counter(word for _, text in spoken() for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    common = [word for word, _ in words.most_common(size - len(SPECIAL))]
    return BertTokenizer(vocab={word: i for i, word in enumerate(SPECIAL + common)})


@cache
def causal_tokenizer(size: int = 1000) -> PreTrainedTokenizerFast:
    """Byte-pair encoding that was trained on the speeches, with `<pad>`, `</s>`, `<unk>` and `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    backend.train_from_iterator((text for _, text in spoken()[:4000]), trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def century_rows(tokenizer: Any, count: int = 1200, max_length: int = 16) -> list[dict]:
    """Sentences spoken before 1850 (0) or after 1970 (1), equally many."""
    early = [text for year, text in spoken() if year < 1850][: count // 2]
    late = [text for year, text in spoken() if year > 1970][: count // 2]
    rows = [(text, label) for label, texts in enumerate((early, late)) for text in texts]
    random.Random(1).shuffle(rows)
    return [{**tokenizer(text, truncation=True, max_length=max_length), "labels": label} for text, label in rows]


def source_rows(tokenizer: Any, count: int = 1200, max_length: int = 16) -> list[dict]:
    """Sentences of linguists (0) or of presidents (1), equally many."""
    texts = linguists_examples()[0][: count // 2], [text for _, text in spoken(5, 12)][: count // 2]
    rows = [(text, label) for label, part in enumerate(texts) for text in part]
    random.Random(2).shuffle(rows)
    return [{**tokenizer(text, truncation=True, max_length=max_length), "labels": label} for text, label in rows]


def token_blocks(tokenizer: Any, length: int = 32, sentences: int = 3000) -> list[list[int]]:
    """Tokens of the speeches in blocks of equal length, an end token after each sentence where there is one."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    ids = [
        i for _, text in spoken()[:sentences] for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]
    ]
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
