"""Transformers' BERT with our weights, random cases, and how gradients are compared."""

import random

import pytest
import torch
import transformers
from torch import nn

import bert_toolkit
from bert_toolkit import ToolkitBertConfig

HEADS = (
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"layer_norm_placement": "pre", "position_embedding_type": "sinusoidal"}],
    ids=["post-learned", "pre-sinusoidal"],
)


def head(family: str, name: str) -> type[transformers.PreTrainedModel]:
    return getattr(transformers if family == "Bert" else bert_toolkit, family + name)


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter, biases and LayerNorms too, a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.1
        center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        parameter.data.copy_(center + scale * noise)
    return model


def random_case(seed: int, name: str, padded: bool) -> tuple[dict, dict]:
    """Settings of a random BERT and a random batch for one of its heads."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4])
    settings = {
        "vocab_size": draw.randint(30, 200),
        "hidden_size": heads * draw.choice([4, 8, 12]),
        "num_hidden_layers": draw.randint(1, 4),
        "num_attention_heads": heads,
        "intermediate_size": draw.randint(8, 100),
        "hidden_act": draw.choice(["gelu", "gelu_new", "gelu_pytorch_tanh"]),
        "max_position_embeddings": draw.randint(24, 40),
        "type_vocab_size": draw.randint(2, 3),
        "layer_norm_eps": draw.choice([1e-12, 1e-5]),
        "pad_token_id": draw.choice([0, 1]),
        "tie_word_embeddings": draw.random() < 0.7,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    problem = draw.choice(["classes", "regression", "several"])
    if name == "ForSequenceClassification":
        settings["num_labels"] = {"classes": draw.randint(2, 5), "regression": 1, "several": draw.randint(2, 4)}[
            problem
        ]
    elif name == "ForTokenClassification":
        settings["num_labels"] = draw.randint(2, 7)

    torch.manual_seed(seed)
    size, length = draw.randint(1, 6), draw.randint(8, 24)
    batch = {
        "input_ids": torch.randint(0, settings["vocab_size"], (size, length)),
        "token_type_ids": torch.randint(0, settings["type_vocab_size"], (size, length)),
    }
    if padded:
        real = torch.randint(4, length + 1, (size,))
        real[0] = length - 1
        batch["attention_mask"] = (torch.arange(length) < real[:, None]).long()
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, settings["pad_token_id"])
    if draw.random() < 0.3:
        batch["position_ids"] = torch.randint(0, settings["max_position_embeddings"], (size, length))
    words = batch["input_ids"].masked_fill(torch.rand(size, length) > 0.3, -100)
    words[0, 1] = 5
    if name in ("ForPreTraining", "ForMaskedLM"):
        batch["labels"] = words
    if name == "ForPreTraining":
        batch["next_sentence_label"] = torch.randint(0, 2, (size,))
    elif name == "ForNextSentencePrediction":
        batch["labels"] = torch.randint(0, 2, (size,))
    elif name == "ForSequenceClassification":
        classes = settings["num_labels"]
        batch["labels"] = {
            "classes": torch.randint(0, classes, (size,)),
            "regression": torch.randn(size),
            "several": torch.randint(0, 2, (size, classes)).float(),
        }[problem]
    elif name == "ForTokenClassification":
        batch["labels"] = (words.clamp(min=0) % settings["num_labels"]).masked_fill(words < 0, -100)
    elif name == "ForQuestionAnswering":
        batch["start_positions"] = torch.randint(0, length, (size,))
        batch["end_positions"] = torch.randint(0, length + 3, (size,))  # some lie outside and do not count
        batch["end_positions"][0] = 2
    return settings, batch


def pair(name: str, settings: dict, seed: int) -> tuple[nn.Module, nn.Module]:
    """Transformers' head and ours with the same weights; a name that differs would fail the strict loading."""
    theirs = randomize(head("Bert", name)(transformers.BertConfig(**settings)), seed)
    ours = head("ToolkitBert", name)(ToolkitBertConfig(**settings))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    # without tying transformers has the output bias twice and uses one
    unused = set() if settings["tie_word_embeddings"] else {"cls.predictions.decoder.bias"}
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()} - unused
    return theirs, ours


def loss_and_gradients(
    model: nn.Module, batch: dict
) -> tuple[transformers.utils.ModelOutput, dict[str, torch.Tensor]]:
    model.zero_grad()
    outputs = model(**batch)
    if "loss" in outputs:
        outputs.loss.backward()
    else:  # the encoder has no loss of its own: take one that reads every output
        torch.manual_seed(0)
        total = sum((o * torch.randn(o.shape, dtype=torch.float64).to(o.dtype)).sum() for o in outputs.to_tuple())
        total.backward()
    names = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    return outputs, {names.get(n, n): p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_gradients_agree(ours: dict, theirs: dict, tolerance: float) -> None:
    """Compare each parameter's gradient in norm: relative to that gradient, plus eight roundings of the largest one.

    Rounding errors scale with the terms of a gradient, not with their sum, and some sums cancel: exactly for key
    biases and for the last bias before a softmax over tokens, nearly for query and key where attention is almost
    uniform. The float64 cases show that what is left in float32 is rounding.
    """
    assert ours.keys() == theirs.keys()
    largest = max(theirs.values(), key=torch.Tensor.norm)
    allowance = 8 * torch.finfo(largest.dtype).eps * largest.norm().item()
    for name, expected in theirs.items():
        error = (ours[name] - expected).norm().item()
        assert error <= tolerance * expected.norm().item() + allowance, f"{name}: error {error:.2e}"


def pretraining_batch(size: int = 4, length: int = 12, padded: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, 61, (size, length), generator=generator)
    mask = torch.arange(length) < torch.randint(5, length, (size, 1), generator=generator)
    labels = ids.masked_fill(torch.rand(size, length, generator=generator) > 0.25, -100)
    labels[0, 1] = 7
    batch = {"input_ids": ids, "labels": labels, "next_sentence_label": torch.arange(size) % 2}
    return {**batch, "attention_mask": mask.long()} if padded else batch


def tiny(name: str, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    model = head("ToolkitBert", name)(
        ToolkitBertConfig(**{**TINY, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **settings})
    )
    return randomize(model, seed=0)
