"""Models leave: the same weights as transformers' BERT, and as ONNX."""

import pytest
import torch
import transformers
from bert_oracle import HEADS, TINY, head, pair, pretraining_batch, random_case, randomize, tiny
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

import bert_toolkit
from bert_toolkit import ToolkitBertConfig

SETTINGS = [
    {},
    {"attention_bias": False},
    {"tie_word_embeddings": False},
    *({"hidden_act": name} for name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")),
    {"type_vocab_size": 3, "pad_token_id": 1, "layer_norm_eps": 1e-5, "classifier_dropout": 0.3},
]


def logits_of(outputs: transformers.utils.ModelOutput) -> list[torch.Tensor]:
    return [value for value in outputs.to_tuple() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_plain_bert_of_the_same_weights(name: str, settings: dict, tmp_path) -> None:
    """Outputs equal to 1e-6, also after saving and loading with transformers alone, padded and not.

    In double precision where the two write the tanh form of GELU with other roundings.
    """
    dtype = torch.float64 if "hidden_act" in settings else torch.float32
    ours = tiny(name, **settings, num_labels=3).eval().to(dtype)
    theirs = ours.to_transformers()
    assert type(theirs) is head("Bert", name) and not theirs.training
    theirs.save_pretrained(tmp_path)
    again = head("Bert", name).from_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) <= set(theirs.state_dict())
    assert not list(tmp_path.glob("*.py"))  # no code is needed where transformers is installed
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is transformers.BertConfig
    for padded in (False, True):
        batch = pretraining_batch(padded=padded)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        inputs["token_type_ids"] = (torch.arange(12) > 6).long().expand(4, 12)
        for one, *others in zip(*(logits_of(model(**inputs)) for model in (ours, theirs, again)), strict=True):
            for other in others:
                assert (one - other).abs().max() < 1e-6
    # and back
    back = head("ToolkitBert", name).from_pretrained(tmp_path).eval()
    for one, other in zip(logits_of(back(**inputs)), logits_of(ours(**inputs)), strict=True):
        assert (one - other).abs().max() < 1e-6


def test_settings_are_kept_and_ours_alone_are_not(tmp_path) -> None:
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    settings = {"problem_type": "single_label_classification", "hidden_dropout_prob": 0.2, "initializer_range": 0.03}
    config = ToolkitBertConfig(**TINY, **labels, **settings, sep_token_id=3)
    theirs = bert_toolkit.ToolkitBertForSequenceClassification(config).to_transformers()
    for name, value in {**TINY, **labels, **settings, "sep_token_id": 3}.items():
        assert getattr(theirs.config, name) == value, name
    theirs.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "toolkit" not in text.lower()
    for name in ("layer_norm_placement", "sparse_prediction", "auto_map", "position_embedding_type"):
        assert name not in text, name


def test_the_copy_is_a_copy() -> None:
    """No shared memory, no random numbers drawn, mode and precision kept."""
    ours = tiny("ForPreTraining").to(torch.bfloat16).train()
    state = torch.get_rng_state()
    theirs = ours.to_transformers()
    assert torch.equal(torch.get_rng_state(), state)
    assert theirs.training and theirs.dtype == torch.bfloat16
    assert theirs.cls.predictions.decoder.weight is theirs.bert.embeddings.word_embeddings.weight
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for parameter in theirs.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_training_goes_on_where_it_was() -> None:
    """Loss and gradients of the copy, without dropout."""
    settings, batch = random_case(3, "ForPreTraining", padded=True)
    _, ours = pair("ForPreTraining", settings, 3)
    theirs = ours.train().to_transformers()
    for model in (ours, theirs):
        model(**batch).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6)


def test_the_encoder_without_a_pooler_and_a_class_of_ones_own() -> None:
    encoder = randomize(bert_toolkit.ToolkitBertModel(ToolkitBertConfig(**TINY), add_pooling_layer=False), 1).eval()
    ids = pretraining_batch()["input_ids"]
    theirs = encoder.to_transformers()
    assert theirs.pooler is None
    assert (theirs(ids).last_hidden_state - encoder(ids).last_hidden_state).abs().max() < 1e-6

    class Mine(bert_toolkit.ToolkitBertForTokenClassification):
        pass

    assert type(Mine(ToolkitBertConfig(**TINY)).to_transformers()) is transformers.BertForTokenClassification


@pytest.mark.parametrize("form", [{"layer_norm_placement": "pre"}, {"position_embedding_type": "sinusoidal"}], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_forms_that_bert_does_not_have_are_refused(name: str, form: dict) -> None:
    ((setting, value),) = form.items()
    with pytest.raises(ValueError, match=f"transformers' BERT has no {setting}='{value}', only '.*trust_remote_code"):
        tiny(name, **form).to_transformers()


def test_more_parameters_than_the_head_has_are_refused_until_they_are_merged() -> None:
    adapted = get_peft_model(tiny("ForMaskedLM"), LoraConfig(target_modules=["query"], init_lora_weights=False))
    with pytest.raises(ValueError, match="merge or remove adapters"):
        adapted.get_base_model().to_transformers()
    merged = adapted.merge_and_unload().eval()
    ids = pretraining_batch()["input_ids"]
    assert (merged.to_transformers()(ids).logits - merged(ids).logits).abs().max() < 1e-5


# --- ONNX ----------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Positional inputs and a tuple of tensors, as an exported graph has them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(logits_of(outputs))


KINDS = ("plain bert", "toolkit", "toolkit, pre-LN")
# One head in each kind, and each kind of output once; an export takes seconds, so the others are slow ones.
QUICK = {("ForSequenceClassification", kind) for kind in KINDS} | {("ForPreTraining", "plain bert")}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in QUICK else pytest.mark.slow)
        for name in HEADS
        for kind in KINDS
    ],
)
def test_onnx_gives_the_same(name: str, kind: str, tmp_path) -> None:
    """Exported from one unpadded batch, run by onnxruntime on padded batches of other shapes."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    form = {"layer_norm_placement": "pre", "position_embedding_type": "sinusoidal"} if "pre" in kind else {}
    ours = tiny(name, **form, num_labels=3).eval()
    exported = Logits(ours.to_transformers() if kind == "plain bert" else ours)
    generator = torch.Generator().manual_seed(4)

    def inputs(size: int, length: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(5, 61, (size, length), generator=generator)
        real = torch.arange(length) < torch.randint(2, length, (size, 1), generator=generator)
        return {"input_ids": ids, "attention_mask": real.long(), "token_type_ids": ids % 2}

    example = inputs(2, 9)
    example["attention_mask"] = torch.ones_like(example["attention_mask"])
    batch_size, length = torch.export.Dim("batch"), torch.export.Dim("length", max=32)
    torch.onnx.export(
        exported,
        tuple(example.values()),
        tmp_path / "model.onnx",
        input_names=list(example),
        dynamic_shapes=({0: batch_size, 1: length},) * 3,
        dynamo=True,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (example, inputs(3, 9), inputs(5, 17), inputs(1, 32)):
        expected = Logits(ours)(*batch.values())
        outputs = session.run(None, {key: value.numpy() for key, value in batch.items()})
        for one, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other.detach(), rtol=1e-4, atol=1e-5)
