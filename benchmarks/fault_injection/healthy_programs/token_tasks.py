"""Labels for tokens, spans, choices and pairs, and encoders of several families from scratch."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModel,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    Trainer,
)

from benchmarks.fault_injection.healthy_programs.measures import held_out_accuracy, predictions
from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Score,
    Setup,
    arguments,
    program,
    with_trainer,
)
from benchmarks.fault_injection.healthy_programs.texts import (
    causal_tokenizer,
    century_rows,
    small_minilm_folder,
    small_minilm_tokenizer,
    source_rows,
    speeches,
    spoken,
    word_tokenizer,
)


def named_words() -> list[dict[str, Any]]:
    """Lower-cased sentences whose words were names (1: begins, 2: goes on) or not (0), first pieces alone labeled."""
    tokenizer = small_minilm_tokenizer()
    rows = []
    for _, text in spoken()[:6000]:
        words = text.split()
        if text.isupper():
            continue
        capital = [i > 0 and word[0].isupper() and len(word) > 1 for i, word in enumerate(words)]
        if not any(capital):
            continue
        tags = [(2 if i and capital[i - 1] else 1) if capital[i] else 0 for i in range(len(words))]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=32)
        places = encoded.word_ids()
        labels = [
            -100 if place is None or place == before else tags[place]
            for place, before in zip(places, [None, *places], strict=False)
        ]
        rows.append({**encoded, "labels": labels})
    return rows[:1200]


@program(TUNING)
def names_by_token(setup: Setup) -> Ready:
    """Token classification: which lower-cased words are names."""
    tokenizer = small_minilm_tokenizer()
    rows = named_words()

    def f1(trainer: Trainer) -> Score:
        from sklearn.metrics import f1_score

        found, labels = [], []
        for row in rows[1000:]:
            logits = predictions(trainer.model, [row], trainer.data_collator)[0]
            for place, label in enumerate(row["labels"]):
                if label != -100:
                    found.append(int(logits[place].argmax() > 0))
                    labels.append(int(label > 0))
        return Score("F1 of names", float(f1_score(labels, found)), 0.6, higher=True)

    return with_trainer(
        setup,
        BertForTokenClassification.from_pretrained(small_minilm_folder(), num_labels=3),
        rows[:1000],
        arguments(setup, 100, 5e-4),
        tokenizer=tokenizer,
        collator=DataCollatorForTokenClassification(tokenizer),
        score=f1,
    )


@program(HELD_OUT)
def answers_in_context(setup: Setup) -> Ready:
    """Question answering: the question is a word, the answer the two words after it in the context."""
    tokenizer = small_minilm_tokenizer()
    chance = random.Random(0)
    rows = []
    for _, text in spoken()[:1500]:
        words = text.split()[:12]
        place = chance.randrange(len(words) - 3)
        encoded = tokenizer([words[place]], words, is_split_into_words=True, truncation=True, max_length=40)
        second = [i for i, kind in enumerate(encoded["token_type_ids"]) if kind]
        pieces = encoded.word_ids()
        start = next((i for i in second if pieces[i] == place + 1), 0)
        end = max((i for i in second if pieces[i] == place + 2), default=0)
        rows.append({**encoded, "start_positions": start, "end_positions": end})
    return with_trainer(
        setup,
        BertForQuestionAnswering.from_pretrained(small_minilm_folder()),
        rows,
        arguments(setup, 200, 1e-3, 16),
        tokenizer=tokenizer,
        score=0.85,
    )


def stacked_choices(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Examples of several choices each, padded to one length."""
    choices = len(rows[0]["input_ids"])
    flat = [
        {name: row[name][i] for name in ("input_ids", "attention_mask", "token_type_ids")}
        for row in rows
        for i in range(choices)
    ]
    padded = small_minilm_tokenizer().pad(flat, return_tensors="pt")
    batch = {name: values.view(len(rows), choices, -1) for name, values in padded.items()}
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


@program(HELD_OUT)
def one_of_four_continuations(setup: Setup) -> Ready:
    """Multiple choice: which second half of a sentence belongs to the first; the wrong ones are in disorder."""
    tokenizer = small_minilm_tokenizer()
    chance = random.Random(0)
    rows = []
    for _, text in spoken()[:1200]:
        words = text.split()
        half = len(words) // 2
        rest = [" ".join(chance.sample(words[half:], len(words) - half)) for _ in range(4)]
        label = chance.randrange(4)
        rest[label] = " ".join(words[half:])
        encoded = tokenizer([" ".join(words[:half])] * 4, rest, truncation=True, max_length=24)
        rows.append({**encoded, "labels": label})
    return with_trainer(
        setup,
        BertForMultipleChoice.from_pretrained(small_minilm_folder()),
        rows,
        arguments(setup, 150, 4e-4, 4),
        collator=stacked_choices,
        score=0.85,
    )


class SpanHead(nn.Module):
    """Start and end of a span by a head of one's own on bare vectors."""

    def __init__(self, body: nn.Module):
        """Put the head on the body."""
        super().__init__()
        self.body = body
        self.ends = nn.Linear(384, 2)

    def forward(self, start: Tensor, end: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Mean of two cross-entropies over places."""
        scores = self.ends(self.body(**inputs).last_hidden_state)
        scores = scores.masked_fill(inputs["attention_mask"][..., None] == 0, -1e4)
        loss = functional.cross_entropy(scores[..., 0], start) + functional.cross_entropy(scores[..., 1], end)
        return {"loss": loss / 2, "scores": scores}


@program(HELD_OUT)
def first_span_of_names(setup: Setup) -> Ready:
    """Spans: where the first name of a sentence begins and ends."""
    tokenizer = small_minilm_tokenizer()
    rows = []
    for row in named_words():
        if 1 in row["labels"]:
            start = row["labels"].index(1)
            rest = row["labels"][start + 1 : -1]
            end = start + next((i for i, label in enumerate(rest) if label in (0, 1)), len(rest))
            rows.append({name: row[name] for name in ("input_ids", "attention_mask")} | {"start": start, "end": end})

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in batch]
        ends = {name: torch.tensor([row[name] for row in batch]) for name in ("start", "end")}
        return {**tokenizer.pad(texts, return_tensors="pt"), **ends}

    model = SpanHead(AutoModel.from_pretrained(small_minilm_folder(), add_pooling_layer=False))
    return with_trainer(setup, model, rows, arguments(setup, 120, 5e-4), collator=collate, score=0.8)


class ConditionalRandomField(nn.Module):
    """A BiLSTM whose tags are scored as a chain."""

    def __init__(self, words: int, tags: int = 3):
        """Make the layers."""
        super().__init__()
        self.embed = nn.Embedding(words, 48, padding_idx=0)
        self.lstm = nn.LSTM(48, 48, batch_first=True, bidirectional=True)
        self.emit = nn.Linear(96, tags)
        self.transitions = nn.Parameter(torch.zeros(tags, tags))

    def forward(self, input_ids: Tensor, tags: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Negative log-likelihood of the chain, per word."""
        scores = self.emit(self.lstm(self.embed(input_ids))[0])  # (batch, length, tags)
        gold = scores.gather(2, tags[..., None]).squeeze(-1) * mask
        total = gold.sum() + (self.transitions[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]).sum()
        alpha = scores[:, 0]
        for place in range(1, scores.shape[1]):
            stepped = (alpha[:, :, None] + self.transitions + scores[:, place, None]).logsumexp(1)
            alpha = torch.where(mask[:, place, None] > 0, stepped, alpha)
        return {"loss": (alpha.logsumexp(1).sum() - total) / mask.sum(), "scores": scores}


@program(HELD_OUT)
def chain_of_tags(setup: Setup) -> Ready:
    """BiLSTM with a CRF from scratch: long words, words after long words, and others."""
    tokenizer = word_tokenizer()
    rows = []
    for _, text in spoken()[:2000]:
        words = text.split()[:14]
        long = [len(word) > 6 for word in words]
        tags = [2 if long[i] else 1 if i and long[i - 1] else 0 for i in range(len(words))]
        ids = [tokenizer.convert_tokens_to_ids(word.lower().strip(",.;")) for word in words]
        rows.append((ids, tags))

    def collate(batch: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        length = max(len(ids) for ids, _ in batch)
        padded = [[values + [0] * (length - len(values)) for values in row] for row in batch]
        mask = torch.tensor([[1.0] * len(ids) + [0.0] * (length - len(ids)) for ids, _ in batch])
        return {
            "input_ids": torch.tensor([ids for ids, _ in padded]),
            "tags": torch.tensor([tags for _, tags in padded]),
            "mask": mask,
        }

    model = ConditionalRandomField(len(tokenizer))
    return with_trainer(setup, model, rows, arguments(setup, 120, 5e-3, 16), collator=collate, score=0.7)


def sources_from_scratch(setup: Setup, model: nn.Module, rate: float, steps: int = 150, **settings: Any) -> Ready:
    """Linguists or presidents, with a tokenizer of words and a model without weights."""
    tokenizer = word_tokenizer()
    rows = source_rows(tokenizer)
    return with_trainer(
        setup,
        model,
        rows[:1000],
        arguments(setup, steps, rate, 16, **settings),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.8),
    )


@program(TUNING)
def roberta(setup: Setup) -> Ready:
    """RoBERTa, whose head has a layer of its own and whose body has no pooler."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=len(word_tokenizer()),
        pad_token_id=0,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    return sources_from_scratch(setup, RobertaForSequenceClassification(config), 1e-3)


@program(HELD_OUT)
def deberta(setup: Setup) -> Ready:
    """DeBERTa with disentangled attention."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=len(word_tokenizer()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        relative_attention=True,
        max_relative_positions=32,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
    )
    return sources_from_scratch(setup, DebertaV2ForSequenceClassification(config), 1e-3)


@program(HELD_OUT)
def distilbert(setup: Setup) -> Ready:
    """DistilBERT from scratch."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=len(word_tokenizer()), dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64
    )
    return sources_from_scratch(setup, DistilBertForSequenceClassification(config), 1e-3)


@program(TUNING)
def albert(setup: Setup) -> Ready:
    """ALBERT, all of whose layers are one."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(
        vocab_size=len(word_tokenizer()),
        embedding_size=32,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    return sources_from_scratch(setup, AlbertForSequenceClassification(config), 1e-3)


@program(HELD_OUT)
def decoder_as_classifier(setup: Setup) -> Ready:
    """A Llama that reads its class from the last token."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = causal_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=2,
    )
    rows = century_rows(tokenizer)
    return with_trainer(
        setup,
        LlamaForSequenceClassification(config),
        rows[:1000],
        arguments(setup, 150, 2e-3, 16),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[1000:], 0.65),
    )


@program(TUNING)
def next_sentence_or_not(setup: Setup) -> Ready:
    """Pairs of sentences, one of a kind or two, with segment ids."""
    tokenizer = small_minilm_tokenizer()
    chance = random.Random(0)
    early = [sentence for year, sentences in speeches() if year < 1850 for sentence in sentences[:20]]
    late = [sentence for year, sentences in speeches() if year > 1970 for sentence in sentences[:20]]
    rows = []
    for _ in range(1000):
        first, second = chance.choice((early, late)), chance.choice((early, late))
        encoded = tokenizer(chance.choice(first), chance.choice(second), truncation=True, max_length=32)
        rows.append({**encoded, "labels": int(first is second)})
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(small_minilm_folder(), num_labels=2)
    return with_trainer(
        setup,
        model,
        rows,
        arguments(setup, 480, 6e-4),
        tokenizer=tokenizer,
        score=held_out_accuracy(rows[800:], 0.6),
    )
