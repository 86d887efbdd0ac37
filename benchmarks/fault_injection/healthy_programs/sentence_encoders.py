"""sentence-transformers and SetFit: bi-encoders with many losses, a cross-encoder and a sparse encoder."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fault_injection.healthy_programs.program import (
    HELD_OUT,
    TUNING,
    Ready,
    Score,
    Setup,
    arguments,
    loss_fell,
    program,
)
from benchmarks.fault_injection.healthy_programs.texts import linguists_examples, small_minilm_folder, speeches, spoken

PACKAGES = ("sentence_transformers", "datasets")


@cache
def neighbors() -> list[tuple[str, str, int]]:
    """Sentences that follow one another in a speech, and the year."""
    pairs = [
        (first, second, year)
        for year, sentences in speeches()
        for first, second in zip(sentences, sentences[1:], strict=False)
        if 6 <= len(first.split()) <= 16 and 6 <= len(second.split()) <= 16
    ]
    random.Random(0).shuffle(pairs)
    return pairs[:1200]


def pairs() -> dict[str, list]:
    """Anchors and positives."""
    return {"anchor": [first for first, _, _ in neighbors()], "positive": [second for _, second, _ in neighbors()]}


def triplets() -> dict[str, list]:
    """Two sentences of one century and one of another."""
    early = [text for year, text in spoken() if year < 1850]
    late = [text for year, text in spoken() if year > 1970]
    few = min(len(early) // 2, 500)
    return {"anchor": early[:few], "positive": early[few : 2 * few], "negative": late[:few]}


def labeled(label: type) -> dict[str, list]:
    """Pairs of one century (1) and of different ones (0)."""
    early = [text for year, text in spoken() if year < 1850]
    late = [text for year, text in spoken() if year > 1970]
    few = min(len(early) // 3, 300)
    same = zip(early[:few], early[few : 2 * few], strict=True)
    other = zip(early[2 * few : 3 * few], late[:few], strict=True)
    rows = [(*pair, label(1)) for pair in same] + [(*pair, label(0)) for pair in other]
    random.Random(0).shuffle(rows)
    return {name: [row[i] for row in rows] for i, name in enumerate(("sentence1", "sentence2", "label"))}


def bi_encoder(
    setup: Setup,
    columns: dict[str, list],
    make_loss: Callable[[Any], Any],
    to: float,
    steps: int = 80,
    rate: float = 5e-5,
    batch: int = 8,
    **settings: Any,
) -> Ready:
    """MiniLM as a bi-encoder."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.models import Pooling, Transformer

    body = Transformer(str(small_minilm_folder()), max_seq_length=20)
    model = SentenceTransformer(modules=[body, Pooling(384)], device="cpu")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments(setup, steps, rate, batch, **settings)),
        train_dataset=Dataset.from_dict(columns),
        loss=make_loss(model),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, to), trainer)


def losses() -> Any:
    """The losses of sentence-transformers."""
    from sentence_transformers import losses as module

    return module


@program(TUNING, packages=PACKAGES)
def ranking_of_pairs(setup: Setup) -> Ready:
    """MultipleNegativesRankingLoss on neighbors in a speech."""
    return bi_encoder(setup, pairs(), lambda model: losses().MultipleNegativesRankingLoss(model), 0.9, batch=12)


@program(HELD_OUT, packages=PACKAGES)
def ranking_of_matryoshkas(setup: Setup) -> Ready:
    """MatryoshkaLoss around it: the sum for several widths."""

    def loss(model: Any) -> Any:
        inner = losses().MultipleNegativesRankingLoss(model)
        return losses().MatryoshkaLoss(model, inner, matryoshka_dims=[384, 128, 32])

    return bi_encoder(setup, pairs(), loss, 0.9)


@program(TUNING, packages=PACKAGES)
def cosine_of_pairs(setup: Setup) -> Ready:
    """CosineSimilarityLoss on scores of 0 and 1."""
    return bi_encoder(setup, labeled(float), lambda model: losses().CosineSimilarityLoss(model), 0.85)


@program(HELD_OUT, packages=PACKAGES)
def cosent(setup: Setup) -> Ready:
    """CoSENTLoss, which compares pairs of pairs."""
    return bi_encoder(setup, labeled(float), lambda model: losses().CoSENTLoss(model), 0.9)


@program(HELD_OUT, packages=PACKAGES)
def triplets_of_sentences(setup: Setup) -> Ready:
    """TripletLoss with a margin of 5."""
    return bi_encoder(setup, triplets(), lambda model: losses().TripletLoss(model), 0.9)


@program(TUNING, packages=PACKAGES)
def contrast_of_pairs(setup: Setup) -> Ready:
    """OnlineContrastiveLoss, which takes the hard pairs alone."""
    return bi_encoder(setup, labeled(int), lambda model: losses().OnlineContrastiveLoss(model), 0.9)


@program(HELD_OUT, packages=PACKAGES)
def softmax_of_pairs(setup: Setup) -> Ready:
    """SoftmaxLoss, whose classifier belongs to the loss and not to the model."""

    def loss(model: Any) -> Any:
        return losses().SoftmaxLoss(model, sentence_embedding_dimension=384, num_labels=2)

    return bi_encoder(setup, labeled(int), loss, 0.97, rate=1e-4)


@program(TUNING, packages=PACKAGES)
def embeddings_of_a_teacher(setup: Setup) -> Ready:
    """MSELoss: one layer learns the vectors of three."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.models import Pooling, Transformer

    def encoder(layers: int) -> Any:
        body = Transformer(str(small_minilm_folder()), max_seq_length=20, config_kwargs={"num_hidden_layers": layers})
        return SentenceTransformer(modules=[body, Pooling(384)], device="cpu")

    texts = [text for _, text in spoken()[:800]]
    vectors = encoder(3).encode(texts, show_progress_bar=False)
    model = encoder(1)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments(setup, 100, 3e-4)),
        train_dataset=Dataset.from_dict({"sentence": texts, "label": vectors.tolist()}),
        loss=losses().MSELoss(model),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.7), trainer)


@program(TUNING, packages=PACKAGES)
def cross_encoder(setup: Setup) -> Ready:
    """A cross-encoder with binary cross-entropy on one logit."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model = CrossEncoder(str(small_minilm_folder()), num_labels=1, max_length=40, device="cpu")
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**arguments(setup, 120, 2e-4)),
        train_dataset=Dataset.from_dict(labeled(float)),
        loss=BinaryCrossEntropyLoss(model),
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.97), trainer)


@program(HELD_OUT, packages=PACKAGES)
def sparse_encoder(setup: Setup) -> Ready:
    """SPLADE: a masked language model's logits as a sparse vector, with a penalty on how many are not zero."""
    from datasets import Dataset
    from sentence_transformers import (
        SparseEncoder,
        SparseEncoderTrainer,
        SparseEncoderTrainingArguments,
    )
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
    from transformers import BertConfig, BertForMaskedLM

    from benchmarks.fault_injection.healthy_programs.texts import word_tokenizer

    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    base: Path = setup.folder / "base"
    BertForMaskedLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = SparseEncoder(str(base), device="cpu")
    loss = SpladeLoss(model, SparseMultipleNegativesRankingLoss(model), document_regularizer_weight=1e-4)
    words = {
        "anchor": [text for _, text in spoken()[:1000]],
        "positive": [" ".join(text.split()[: len(text.split()) // 2 + 2]) for _, text in spoken()[:1000]],
    }
    trainer = SparseEncoderTrainer(
        model=model,
        args=SparseEncoderTrainingArguments(**arguments(setup, 100, 1e-3, 16)),
        train_dataset=Dataset.from_dict(words),
        loss=loss,
        callbacks=list(setup.make_callbacks()),
    )
    return Ready(trainer.train, model, lambda: loss_fell(trainer, 0.8), trainer)


@program(TUNING, packages=("sentence_transformers", "setfit"))
def setfit(setup: Setup) -> Ready:
    """SetFit: pairs of sixteen examples, then a logistic head."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts = linguists_examples()[0][:60], [text for _, text in spoken(5, 12)][:60]
    rows = [(text, label) for label, part in enumerate(texts) for text in part]
    random.Random(0).shuffle(rows)
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    data = Dataset.from_dict(columns)
    model = SetFitModel.from_pretrained(str(small_minilm_folder()), device="cpu")
    model.model_body.max_seq_length = 20
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(setup.folder),
            max_steps=setup.steps or 60,
            batch_size=8,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            show_progress_bar=False,
        ),
        train_dataset=data.select(range(16)),
        eval_dataset=data.select(range(16, 120)),
        metric=lambda found, labels: {"accuracy": float(np.mean(np.asarray(found) == np.asarray(labels)))},
        callbacks=list(setup.make_callbacks()),
    )

    def score() -> Score:
        return Score("held-out accuracy", float(trainer.evaluate()["accuracy"]), 0.8, higher=True)

    return Ready(trainer.train, model.model_body, score)
