"""Roles, blocks and short names come from modules and shapes, whatever the architecture."""

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from bert_toolkit import ToolkitBertConfig, ToolkitBertForPreTraining
from bert_toolkit.monitoring import describe_parameters
from bert_toolkit.monitoring.parameter_roles import clean_name, positions_by_block

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TWO_LAYERS = ["embeddings", "layer.0", "layer.1", "head"]

MODELS = {
    "bert": (lambda: BertForSequenceClassification(BertConfig(**SMALL)), TWO_LAYERS),
    "toolkit_bert": (lambda: ToolkitBertForPreTraining(ToolkitBertConfig(**SMALL)), TWO_LAYERS),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2)), TWO_LAYERS),
    "vit": (lambda: ViTForImageClassification(ViTConfig(**SMALL)), TWO_LAYERS),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), TWO_LAYERS),
    "albert": (lambda: AlbertForMaskedLM(AlbertConfig(**SMALL, embedding_size=8)), ["embeddings", "layer.0", "head"]),
    "t5": (
        lambda: T5ForConditionalGeneration(T5Config(d_model=16, num_layers=1, d_ff=32, num_heads=2)),
        ["embeddings", "encoder.layer.0", "head", "decoder.layer.0"],
    ),
    "clip": (
        lambda: CLIPModel(CLIPConfig(text_config=SMALL, vision_config=SMALL)),
        [
            "embeddings",
            "text_model.layer.0",
            "text_model.layer.1",
            "head",
            "vision_model.layer.0",
            "vision_model.layer.1",
        ],
    ),
    "swin": (
        lambda: SwinForImageClassification(SwinConfig(depths=[1, 1, 1, 1])),
        ["embeddings", "layer.0", "layer.1", "layer.2", "layer.3", "head"],
    ),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)),
        ["layer.0", "layer.2"],
    ),
    "no stack": (lambda: nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)}), ["first", "second"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_any_architecture(name):
    build, blocks = MODELS[name]
    described = describe_parameters(build())
    assert list(dict.fromkeys(info.block for info in described.values())) == blocks


@pytest.mark.parametrize("name", MODELS)
def test_short_names_are_unique_in_a_block(name):
    described = describe_parameters(MODELS[name][0]())
    labels = Counter(info.label for info in described.values())
    assert [label for label, count in labels.items() if count > 1] == []
    assert all(len(info.kind) <= len(info.name) for info in described.values())


@pytest.mark.parametrize("name", MODELS)
def test_roles_agree_with_modules(name):
    """An oracle that reads the modules' classes one by one."""
    model = MODELS[name][0]()
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            found = describe_parameters(model).get(f"{path}.{own}".lstrip("."))
            if found is None:
                continue  # a tied parameter, listed under its first name
            if own.endswith("bias") and parameter.ndim == 1:
                assert found.role == "bias"
            elif isinstance(module, nn.Embedding):
                assert found.role == "embedding"
            elif "Norm" in type(module).__name__:
                assert found.role == "norm"
            elif isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D":
                assert found.role in ("matrix", "embedding")
            else:
                assert found.role in ("other", "matrix")


def test_tied_parameter_comes_once_as_an_embedding():
    described = describe_parameters(BertForMaskedLM(BertConfig(**SMALL)))
    assert described["bert.embeddings.word_embeddings.weight"].role == "embedding"
    assert "cls.predictions.decoder.weight" not in described

    class OutputFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Linear(4, 9, bias=False)
            self.embed = nn.Embedding(9, 4)
            self.embed.weight = self.output.weight

    assert {name: info.role for name, info in describe_parameters(OutputFirst()).items()} == {
        "output.weight": "embedding"
    }


def test_scalars_gates_and_tables_are_other():
    model = ViTForImageClassification(ViTConfig(**SMALL))
    described = describe_parameters(model)
    assert {n for n, info in described.items() if info.role == "other"} == {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
    }


def test_experts_are_matrices():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(4, 3, 6))
            self.gamma = nn.Parameter(torch.zeros(6))

    described = describe_parameters(Experts())
    assert described["gate_up_proj"].role == "matrix" and described["gamma"].role == "other"


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(nn.Linear(2, 2))
    assert list(describe_parameters(torch.compile(model, backend="eager"))) == ["0.weight", "0.bias"]
    assert list(describe_parameters(nn.DataParallel(model))) == ["0.weight", "0.bias"]
    assert clean_name("_orig_mod.layer._fsdp_wrapped_module.0._checkpoint_wrapped_module.weight") == "layer.0.weight"


def test_trainable_is_told():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert {n: info.trainable for n, info in describe_parameters(model).items()} == {"weight": True, "bias": False}


def test_weights_stand_for_their_block():
    described = describe_parameters(BertForSequenceClassification(BertConfig(**SMALL)))
    names = list(described)
    at = positions_by_block(names, described)
    assert list(at) == TWO_LAYERS
    for block, positions in at.items():
        assert {described[names[i]].block for i in positions} == {block}
        assert not {described[names[i]].role for i in positions} & {"bias", "norm"}
    only_norm = ["bert.encoder.layer.0.output.LayerNorm.weight", "bert.encoder.layer.0.output.LayerNorm.bias"]
    assert positions_by_block(only_norm, described)["layer.0"].tolist() == [0, 1]
