"""The one-line drop-in works in scripts that know nothing of this package."""

import numpy as np
import pytest
import torch
from float64_oracle import Spy, arguments, check_gradients, check_update
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
)

from bert_toolkit import GradientFlowCallback, UpdateRatioCallback

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run"]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[EOS]", "[MASK]", *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        mask_token="[MASK]",
        model_max_length=16,
    )


def sentences(count: int = 24) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=6)) for _ in range(count)]


@pytest.fixture
def monitors():
    return GradientFlowCallback(every_n_steps=2, figures=False), UpdateRatioCallback(every_n_steps=2, figures=False)


def check(monitors, spy, roles: set[str], blocks: set[str]) -> None:
    """Records of steps 1, 2 and 4 that agree with the spy, and the expected roles and blocks."""
    flow, update = monitors
    assert [r.step for r in flow.records] == [r.step for r in update.records] == [1, 2, 4]
    for gradients, change in zip(flow.records, update.records, strict=True):
        step = spy.steps[gradients.step]
        check_gradients(gradients, step.gradients)
        check_update(change, step)
        assert 0 < gradients.clip_coefficient <= 1
        assert not gradients.nonfinite and not gradients.skipped
    seen = [flow.parameters[name] for name in flow.records[0].names]
    assert {info.role for info in seen} == roles
    assert {info.block for info in seen} == blocks


def language_model():
    torch.manual_seed(0)
    tok = tokenizer()
    return tok, GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), n_embd=16, n_layer=2, n_head=2, n_positions=16))


def test_causal_language_model(tmp_path, monitors):
    tok, model = language_model()
    spy = Spy()
    trainer = Trainer(
        model,
        arguments(tmp_path),
        train_dataset=[tok(s) for s in sentences()],
        data_collator=DataCollatorForLanguageModeling(tok, mlm=False),
        callbacks=[*monitors, spy],
    )
    trainer.train()
    check(
        monitors,
        spy,
        {"matrix", "embedding", "norm", "bias"},
        {"embeddings", "layer.0", "layer.1", "head"},
    )


def test_image_classifier(tmp_path, monitors):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    model = ViTForImageClassification(config)
    images = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(24)]
    spy = Spy()
    Trainer(model, arguments(tmp_path), train_dataset=images, callbacks=[*monitors, spy]).train()
    check(
        monitors,
        spy,
        {"matrix", "norm", "bias", "other"},  # class token and position table broadcast over the batch
        {"embeddings", "layer.0", "layer.1", "head"},
    )


def test_supervised_fine_tuning_with_trl(tmp_path, monitors):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tok, model = language_model()
    spy = Spy()
    settings = arguments(tmp_path).to_dict()
    kept = ("output_dir", "max_steps", "per_device_train_batch_size", "learning_rate", "logging_steps", "use_cpu")
    args = trl.SFTConfig(
        **{key: settings[key] for key in kept}, max_length=16, report_to="none", save_strategy="no", bf16=False
    )
    trainer = trl.SFTTrainer(
        model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"text": sentences()}),
        processing_class=tok,
        callbacks=[*monitors, spy],
    )
    trainer.train()
    check(
        monitors,
        spy,
        {"matrix", "embedding", "norm", "bias"},
        {"embeddings", "layer.0", "layer.1", "head"},
    )


@pytest.mark.filterwarnings("ignore:Importing from:DeprecationWarning")
def test_sentence_transformers(tmp_path, monitors):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.losses")
    datasets = pytest.importorskip("datasets")
    torch.manual_seed(0)
    tok = tokenizer()
    config = BertConfig(
        vocab_size=len(tok), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    tok.save_pretrained(tmp_path / "base")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "base"), device="cpu")
    model.max_seq_length = 16
    data = datasets.Dataset.from_dict({"anchor": sentences(), "positive": sentences()[::-1]})
    args = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    spy = Spy()
    trainer = sentence_transformers.SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=data,
        loss=losses.MultipleNegativesRankingLoss(model),
        callbacks=[*monitors, spy],
    )
    trainer.train()
    check(
        monitors,
        spy,
        {"matrix", "embedding", "norm", "bias"},
        {"embeddings", "layer.0", "layer.1"},
    )


def test_peft_model(tmp_path, monitors):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = peft.get_peft_model(BertForSequenceClassification(config), lora)
    data = [{"input_ids": [5, 6, 7 + i % 3], "labels": i % 3} for i in range(24)]
    spy = Spy()
    Trainer(model, arguments(tmp_path), train_dataset=data, callbacks=[*monitors, spy]).train()
    check(
        monitors,
        spy,
        {"adapter", "matrix", "bias"},  # the classifier is trained as a whole
        {"layer.0", "layer.1", "head"},
    )
    flow, _ = monitors
    assert {info.kind for info in flow.parameters.values() if info.role == "adapter"} == {
        "query.lora_A",
        "query.lora_B",
        "value.lora_A",
        "value.lora_B",
    }
    trained_whole = [info for info in flow.parameters.values() if info.role == "matrix" and info.trainable]
    assert [info.label for info in trained_whole] == ["head classifier"]
