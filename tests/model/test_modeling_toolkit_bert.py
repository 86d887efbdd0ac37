"""ToolkitBert against transformers' BERT and torch.nn.TransformerEncoderLayer, and the ways in which it is run."""

import random

import pytest
import torch
import transformers
from torch import nn

import bert_toolkit
from bert_toolkit import ToolkitBertConfig
from bert_toolkit.model import modeling_toolkit_bert

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


def head(family: str, name: str) -> type[transformers.PreTrainedModel]:
    return getattr(transformers if family == "Bert" else bert_toolkit, family + name)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter, biases and LayerNorms too, a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.1
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        parameter.data.copy_(centre + scale * noise)
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
    theirs = randomise(head("Bert", name)(transformers.BertConfig(**settings)), seed)
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


CASES = [pytest.param(seed, torch.float32, id=f"{seed}-float32") for seed in range(24)]
CASES += [pytest.param(seed, torch.float64, id=f"{seed}-float64") for seed in range(4)]


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("seed", "dtype"), CASES)
def test_outputs_loss_and_gradients_equal_transformers(seed: int, dtype: torch.dtype, name: str, padded: bool) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    settings, batch = random_case(seed, name, padded)
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    theirs, ours = (model.to(dtype) for model in pair(name, settings, seed))
    expected, expected_gradients = loss_and_gradients(theirs.eval(), batch)
    outputs, gradients = loss_and_gradients(ours.eval(), batch)
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, rtol=tolerance, atol=tolerance)
    assert_gradients_agree(gradients, expected_gradients, tolerance)

    # training, without dropout: the same loss and gradients, from the labelled positions alone
    sparse, sparse_gradients = loss_and_gradients(ours.train(), batch)
    if name in ("ForPreTraining", "ForMaskedLM"):
        logits = "logits" if name == "ForMaskedLM" else "prediction_logits"
        chosen = batch["labels"] != -100
        assert sparse[logits].shape == (chosen.sum(), settings["vocab_size"])
        torch.testing.assert_close(sparse[logits], expected[logits][chosen], rtol=tolerance, atol=tolerance)
    if "loss" in expected:
        torch.testing.assert_close(sparse.loss, expected.loss, rtol=tolerance, atol=0)
    assert_gradients_agree(sparse_gradients, expected_gradients, tolerance)


# --- both published forms against torch.nn.TransformerEncoderLayer -------------------------------------------------


def reference_layer(layer: nn.Module, config: ToolkitBertConfig) -> nn.TransformerEncoderLayer:
    """PyTorch's own layer with the weights of one of ours."""
    reference = nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        dropout=0.0,
        activation=nn.GELU(approximate="none" if config.hidden_act == "gelu" else "tanh"),
        layer_norm_eps=config.layer_norm_eps,
        batch_first=True,
        norm_first=config.layer_norm_placement == "pre",
        dtype=torch.float64,
    )
    projections = [layer.attention.self.query, layer.attention.self.key, layer.attention.self.value]
    zero = torch.zeros(config.hidden_size, dtype=torch.float64)
    biases = [zero if f.bias is None else f.bias.data for f in (*projections, layer.attention.output.dense)]
    with torch.no_grad():
        reference.self_attn.in_proj_weight.copy_(torch.cat([f.weight for f in projections]))
        reference.self_attn.in_proj_bias.copy_(torch.cat(biases[:3]))
        reference.self_attn.out_proj.weight.copy_(layer.attention.output.dense.weight)
        reference.self_attn.out_proj.bias.copy_(biases[3])
        reference.linear1.load_state_dict(layer.intermediate.dense.state_dict())
        reference.linear2.load_state_dict(layer.output.dense.state_dict())
        reference.norm1.load_state_dict(layer.attention.output.LayerNorm.state_dict())
        reference.norm2.load_state_dict(layer.output.LayerNorm.state_dict())
    return reference


def gradients_of_reference(reference: nn.TransformerEncoderLayer) -> dict[str, torch.Tensor]:
    query, key, value = reference.self_attn.in_proj_weight.grad.chunk(3)
    query_bias, key_bias, value_bias = reference.self_attn.in_proj_bias.grad.chunk(3)
    return {
        "attention.self.query.weight": query,
        "attention.self.key.weight": key,
        "attention.self.value.weight": value,
        "attention.self.query.bias": query_bias,
        "attention.self.key.bias": key_bias,
        "attention.self.value.bias": value_bias,
        "attention.output.dense.weight": reference.self_attn.out_proj.weight.grad,
        "attention.output.dense.bias": reference.self_attn.out_proj.bias.grad,
        "attention.output.LayerNorm.weight": reference.norm1.weight.grad,
        "attention.output.LayerNorm.bias": reference.norm1.bias.grad,
        "intermediate.dense.weight": reference.linear1.weight.grad,
        "intermediate.dense.bias": reference.linear1.bias.grad,
        "output.dense.weight": reference.linear2.weight.grad,
        "output.dense.bias": reference.linear2.bias.grad,
        "output.LayerNorm.weight": reference.norm2.weight.grad,
        "output.LayerNorm.bias": reference.norm2.bias.grad,
    }


@pytest.mark.parametrize("attention_bias", [True, False], ids=["bias", "no-attention-bias"])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_forms_equal_pytorch_layers(placement: str, positions: str, hidden_act: str, attention_bias: bool) -> None:
    config = ToolkitBertConfig(
        **TINY,
        layer_norm_placement=placement,
        position_embedding_type=positions,
        hidden_act=hidden_act,
        attention_bias=attention_bias,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = randomise(bert_toolkit.ToolkitBertModel(config, add_pooling_layer=False).double(), seed=5)
    size = config.hidden_size
    ids = torch.randint(0, 61, (3, 9))
    mask = torch.arange(9) < torch.tensor([[9], [5], [7]])

    # embeddings, written from the papers
    embeddings = model.embeddings
    words = embeddings.word_embeddings.weight[ids]
    if positions == "learned":
        places = embeddings.position_embeddings.weight[:9]
    else:
        words = words * size**0.5
        angle = [[t / 10000 ** (2 * (i // 2) / size) for i in range(size)] for t in range(9)]
        angle = torch.tensor(angle, dtype=torch.float64)
        places = torch.where(torch.arange(size) % 2 == 0, angle.sin(), angle.cos())
        assert not any("position_embeddings" in name for name in model.state_dict())
    x = words + places + embeddings.token_type_embeddings.weight[0]
    x = nn.functional.layer_norm(
        x, (size,), embeddings.LayerNorm.weight, embeddings.LayerNorm.bias, config.layer_norm_eps
    )

    references = [reference_layer(layer, config) for layer in model.encoder.layer]
    for reference in references:
        x = reference(x, src_key_padding_mask=~mask)
    if placement == "pre":
        norm = model.encoder.LayerNorm
        x = nn.functional.layer_norm(x, (size,), norm.weight, norm.bias, config.layer_norm_eps)
    outputs = model(ids, attention_mask=mask.long()).last_hidden_state
    # the float32 table of sinusoids carries its rounding into a float64 model
    tolerance = 1e-10 if positions == "learned" else 1e-5
    torch.testing.assert_close(outputs[mask], x[mask], rtol=tolerance, atol=tolerance)

    probe = torch.randn(x.shape, dtype=torch.float64)[mask]
    embedding = embeddings.word_embeddings.weight
    (expected_embedding,) = torch.autograd.grad((x[mask] * probe).sum(), embedding, retain_graph=True)
    (x[mask] * probe).sum().backward()
    model.zero_grad()
    (outputs[mask] * probe).sum().backward()
    expected_embedding[config.pad_token_id] = 0  # as nn.Embedding(padding_idx=) has it
    torch.testing.assert_close(embedding.grad, expected_embedding, rtol=tolerance, atol=10 * tolerance)
    for layer, reference in zip(model.encoder.layer, references, strict=True):
        expected = gradients_of_reference(reference)
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        assert_gradients_agree(gradients, {name: expected[name] for name in gradients}, tolerance)
        assert expected.keys() - gradients.keys() == (
            set()
            if attention_bias
            else {n for n in expected if n.startswith("attention") and n.endswith("e.bias")}
            | {"attention.self.query.bias", "attention.self.key.bias"}
        )


# --- ways to run it ------------------------------------------------------------------------------------------------


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
    return randomise(model, seed=0)


FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"layer_norm_placement": "pre", "position_embedding_type": "sinusoidal"}],
    ids=["post-learned", "pre-sinusoidal"],
)


def test_unpadded_batch_has_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attention = nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    model, ids = tiny("Model"), torch.randint(0, 61, (2, 8))
    full = model(ids, attention_mask=torch.ones(2, 8, dtype=torch.long)).last_hidden_state
    assert masks == [None, None]
    assert torch.equal(full, model(ids).last_hidden_state)
    padding = torch.ones(2, 8, dtype=torch.long)
    padding[1, 5:] = 0
    model(ids, attention_mask=padding)
    assert masks[-1].shape == (2, 1, 1, 8) and masks[-1].dtype == torch.bool


@FORMS
def test_padding_does_not_change_real_tokens(form: dict) -> None:
    model = tiny("Model", **form).eval()
    ids = torch.randint(5, 61, (1, 6))
    padded = torch.cat((ids, torch.zeros(1, 5, dtype=torch.long)), dim=1)
    mask = (torch.arange(11) < 6).long()[None]
    alone, among = model(ids), model(padded, attention_mask=mask)
    torch.testing.assert_close(among.last_hidden_state[:, :6], alone.last_hidden_state, rtol=1e-5, atol=1e-5)
    pairwise = mask[:, None, :].expand(1, 11, 11)
    for equivalent in (mask.bool(), mask.float(), pairwise, pairwise[:, None].bool()):
        again = model(padded, attention_mask=equivalent).last_hidden_state
        torch.testing.assert_close(again, among.last_hidden_state)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attentions_and_hidden_states_equal_transformers(implementation: str) -> None:
    theirs, ours = pair("Model", {**TINY, "tie_word_embeddings": True}, seed=3)
    theirs.set_attn_implementation("eager")
    ours.set_attn_implementation(implementation)
    batch = pretraining_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = theirs.eval()(**inputs, output_attentions=True, output_hidden_states=True)
    outputs = ours.eval()(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 2 and len(outputs.hidden_states) == 3
    for key in ("attentions", "hidden_states"):
        for one, other in zip(outputs[key], expected[key], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    plain = ours(**inputs)
    assert plain.attentions is None and plain.hidden_states is None
    torch.testing.assert_close(plain.last_hidden_state, outputs.last_hidden_state, rtol=1e-5, atol=1e-5)


def varlen_reference(query, key, value, starts, starts_of_keys, longest, longest_key):
    """What torch.nn.attention.varlen.varlen_attn computes on a GPU: attention within each packed sequence."""
    assert query.dim() == 3 and starts.dtype == torch.int32 and starts is starts_of_keys and longest == longest_key
    contexts = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert 0 < end - begin <= longest
        heads = (t[begin:end].transpose(0, 1) for t in (query, key, value))
        contexts.append(nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1))
    return torch.cat(contexts)


@FORMS
@pytest.mark.parametrize("settings", [{}, {"sparse_prediction": False}, {"max_predictions_per_sequence": 9}], ids=str)
def test_packed_sequences_give_the_same_loss_and_gradients(settings: dict, form: dict, monkeypatch) -> None:
    """The GPU's way around padding, with PyTorch's kernel replaced by its definition."""
    model, batch = tiny("ForPreTraining", **form, **settings).double().train(), pretraining_batch()
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    expected, expected_gradients = loss_and_gradients(model, batch)
    states = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert not model.bert.can_pack(batch["attention_mask"])  # on the CPU there is no such kernel

    monkeypatch.setattr(modeling_toolkit_bert, "varlen_attn", varlen_reference)
    monkeypatch.setattr(bert_toolkit.ToolkitBertModel, "can_pack", lambda *_: True)
    outputs, gradients = loss_and_gradients(model, batch)
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert_gradients_agree(gradients, expected_gradients, 1e-12)
    packed = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(packed[real], states[real])
    assert not packed[~real].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_sequences_on_a_gpu(dtype: torch.dtype) -> None:
    """Packed and masked attention on the real kernel, against the same model in single precision."""
    model, batch = tiny("ForPreTraining").cuda().train(), pretraining_batch()
    batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    batch = {key: value.cuda() for key, value in batch.items()}
    expected, expected_gradients = loss_and_gradients(model, batch)
    model.zero_grad()
    with torch.autocast("cuda", dtype=dtype):
        assert model.bert.can_pack(batch["attention_mask"])
        loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected.loss, rtol=2e-2, atol=0)
    for name, parameter in model.named_parameters():
        if "key.bias" not in name:
            cosine = torch.cosine_similarity(parameter.grad.flatten(), expected_gradients[name].flatten(), dim=0)
            assert cosine > 0.98, name


def test_last_hidden_state_is_the_normalised_one_in_the_pre_form() -> None:
    model = tiny("Model", layer_norm_placement="pre")
    outputs = model(torch.randint(0, 61, (2, 5)), output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)


@FORMS
@pytest.mark.parametrize("name", ["ForPreTraining", "ForMaskedLM"])
def test_sparse_prediction_is_exact(name: str, form: dict) -> None:
    """All, labelled, and a static number of positions: one loss, one gradient."""
    batch = pretraining_batch()
    if name == "ForMaskedLM":
        del batch["next_sentence_label"]
    results = []
    for settings in ({"sparse_prediction": False}, {}, {"max_predictions_per_sequence": 9}):
        outputs, gradients = loss_and_gradients(tiny(name, **form, **settings).double().train(), batch)
        results.append((outputs, gradients))
    (dense, expected), *others = results
    logits = "logits" if name == "ForMaskedLM" else "prediction_logits"
    chosen = batch["labels"] != -100
    for (outputs, gradients), rows in zip(others, (chosen.sum(), 4 * 9), strict=True):
        assert outputs[logits].shape == (rows, 61)
        torch.testing.assert_close(outputs[logits][: chosen.sum()], dense[logits][chosen])
        torch.testing.assert_close(outputs.loss, dense.loss)
        assert_gradients_agree(gradients, expected, 1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("settings", [{}, {"sparse_prediction": False}, {"max_predictions_per_sequence": 2}], ids=str)
@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0), 5])
def test_no_labelled_position_gives_zero_loss_and_every_gradient(settings: dict, training: bool, num_items) -> None:
    """A process of a distributed run whose batch has nothing masked must still take part in the backward pass."""
    model = tiny("ForMaskedLM", **settings).train(training)
    batch = pretraining_batch()
    labels = torch.full_like(batch["labels"], -100)
    outputs = model(batch["input_ids"], labels=labels, num_items_in_batch=num_items)
    assert outputs.loss.item() == 0.0
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_one_term_of_the_pretraining_loss_alone() -> None:
    model, batch = tiny("ForPreTraining").train(), pretraining_batch()
    both = model(**batch)
    torch.testing.assert_close(both.loss, both.masked_lm_loss + both.next_sentence_loss)
    words, sentences = batch.pop("labels"), batch.pop("next_sentence_label")
    torch.testing.assert_close(model(**batch, labels=words).loss, both.masked_lm_loss)
    torch.testing.assert_close(model(**batch, next_sentence_label=sentences).loss, both.next_sentence_loss)
    assert model(**batch).loss is None
    assert model(**batch).prediction_logits.shape == (4, 12, 61)


@FORMS
def test_gradient_checkpointing_recomputes_to_the_same_gradients(form: dict) -> None:
    batch = pretraining_batch()
    expected, expected_gradients = loss_and_gradients(tiny("ForPreTraining", **form).train(), batch)
    model = tiny("ForPreTraining", **form).train()
    model.gradient_checkpointing_enable()
    calls = []
    model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: calls.append(1))
    outputs, gradients = loss_and_gradients(model, batch)
    assert len(calls) == 2  # once forward, once for the backward pass
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert_gradients_agree(gradients, expected_gradients, 1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_compiles_as_one_graph(name: str) -> None:
    """`fullgraph=True` raises at the first graph break; padded, with a loss where the head has one."""
    torch._dynamo.reset()
    form = {"layer_norm_placement": "pre", "position_embedding_type": "sinusoidal"} if name == "ForMaskedLM" else {}
    model = tiny(name, **form, max_predictions_per_sequence=9).train()
    _, batch = random_case(2, name, padded=True)
    batch["input_ids"] %= 61
    batch["token_type_ids"] %= 2
    batch.pop("position_ids", None)
    if "labels" in batch and name != "ForSequenceClassification":
        batch["labels"] = batch["labels"].clamp(max=1)
    if name == "ForSequenceClassification":
        batch["labels"] = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
    expected, expected_gradients = loss_and_gradients(model, batch)
    outputs, gradients = loss_and_gradients(torch.compile(model, backend="aot_eager", fullgraph=True), batch)
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, rtol=1e-5, atol=1e-5)
    gradients = {key.removeprefix("_orig_mod."): value for key, value in gradients.items()}
    assert_gradients_agree(gradients, expected_gradients, 1e-5)


def test_compiles_with_labelled_positions_of_any_number() -> None:
    """Sparse shapes are data: Trainer's `torch_compile` breaks the graph there and goes on."""
    torch._dynamo.reset()
    model, batch = tiny("ForPreTraining").train(), pretraining_batch()
    expected, expected_gradients = loss_and_gradients(model, batch)
    outputs, gradients = loss_and_gradients(torch.compile(model, backend="aot_eager"), batch)
    torch.testing.assert_close(outputs.loss, expected.loss)
    gradients = {key.removeprefix("_orig_mod."): value for key, value in gradients.items()}
    assert_gradients_agree(gradients, expected_gradients, 1e-5)


@FORMS
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, padded: bool, form: dict) -> None:
    model, batch = tiny("ForPreTraining", **form).train(), pretraining_batch(padded=padded)
    expected, expected_gradients = loss_and_gradients(model, batch)
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32  # the loss of half-precision logits is summed in single precision
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=2e-2, atol=0)
    assert outputs.prediction_logits.dtype == dtype
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
    query = "bert.encoder.layer.0.output.dense.weight"
    cosine = torch.cosine_similarity(
        dict(model.named_parameters())[query].grad.flatten(), expected_gradients[query].flatten(), dim=0
    )
    assert cosine > 0.98


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [70, 50])
def test_resize_token_embeddings(size: int, tied: bool) -> None:
    model = tiny("ForPreTraining", tie_word_embeddings=tied).train()
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()
    bias = model.cls.predictions.bias.detach().clone()
    model.resize_token_embeddings(size)
    kept = min(size, 61)
    assert model.config.vocab_size == size
    assert torch.equal(model.bert.embeddings.word_embeddings.weight[:kept], before[:kept])
    assert torch.equal(model.cls.predictions.bias[:kept], bias[:kept])
    decoder = model.cls.predictions.decoder
    assert (decoder.weight is model.bert.embeddings.word_embeddings.weight) == tied
    assert decoder.bias is model.cls.predictions.bias and decoder.bias.shape == (size,)
    batch = pretraining_batch()
    batch["input_ids"] %= 50
    batch["labels"] = batch["labels"].clamp(max=49)
    outputs, gradients = loss_and_gradients(model, batch)
    assert outputs.prediction_logits.shape[-1] == size
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_initial_weights_are_those_of_bert() -> None:
    """Normal with standard deviation 0.02, biases and padding 0, LayerNorm 1 and 0; the same for the same seed."""
    config = ToolkitBertConfig(vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    models = []
    for _ in range(2):
        torch.manual_seed(11)
        models.append(head("ToolkitBert", "ForPreTraining")(config))
    for (name, parameter), (_, again) in zip(*(m.named_parameters() for m in models), strict=True):
        assert torch.equal(parameter, again)
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "LayerNorm" in name:
            assert (parameter == 1).all(), name
        else:
            assert abs(parameter.std().item() / 0.02 - 1) < 6 / parameter.numel() ** 0.5 + 0.002, name
            assert abs(parameter.mean().item()) < 6 * 0.02 / parameter.numel() ** 0.5, name
    assert not models[0].bert.embeddings.word_embeddings.weight[0].any()


def test_dropout_works_where_bert_has_it() -> None:
    model = tiny("ForSequenceClassification", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.25).train()
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    theirs = head("Bert", "ForSequenceClassification")(
        transformers.BertConfig(**TINY, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.25)
    )
    assert rates == {name: module.p for name, module in theirs.named_modules() if isinstance(module, nn.Dropout)}
    ids = torch.randint(0, 61, (2, 8))
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.03])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    """Counted on a million elements; a neighbour in the same 64 random bits says nothing about an element."""
    dropout, size = modeling_toolkit_bert.ToolkitBertDropout(rate), 1_000_003
    torch.manual_seed(0)
    x = torch.ones(size, requires_grad=True)
    y = dropout(x)
    dropped = (y == 0).double()
    five_sigma = 5 * (rate * (1 - rate) / size) ** 0.5
    assert abs(dropped.mean().item() - rate) < five_sigma + 2**-17
    assert y[y != 0].unique().numel() == 1
    torch.testing.assert_close(y[y != 0][0].item(), 1 / (1 - rate), rtol=1e-4, atol=0)
    for distance in (1, 2, 3, 4):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert abs(both - rate**2) < 5 * (rate**2 / size) ** 0.5
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)
    assert not torch.equal(dropout(x), y)


def test_dropout_at_its_limits() -> None:
    x, layer = torch.randn(3, 5), modeling_toolkit_bert.ToolkitBertDropout
    assert torch.equal(layer(0.0)(x), x) and torch.equal(layer(0.5).eval()(x), x)
    assert not layer(1.0)(x).any()
    assert layer(0.5)(torch.empty(0, 4)).shape == (0, 4)
    assert layer(0.5)(x.bfloat16()).dtype == torch.bfloat16


def test_attention_dropout_reaches_the_fused_kernel() -> None:
    model, ids = tiny("Model", attention_probs_dropout_prob=0.5).train(), torch.randint(0, 61, (2, 8))
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


def test_word_embeddings_may_be_passed_instead_of_ids() -> None:
    for form in ({}, {"position_embedding_type": "sinusoidal"}):
        model, ids = tiny("ForPreTraining", **form).train(), pretraining_batch()
        vectors = model.get_input_embeddings()(ids["input_ids"])
        other = {key: value for key, value in ids.items() if key != "input_ids"}
        assert torch.equal(model(**ids).loss, model(inputs_embeds=vectors, **other).loss)


def test_tuple_output() -> None:
    model, batch = tiny("ForPreTraining").eval(), pretraining_batch()
    named = model(**batch)
    loss, words, sentences, *_ = model(**batch, return_dict=False)
    assert torch.equal(loss, named.loss) and torch.equal(words, named.prediction_logits)
    assert torch.equal(sentences, named.seq_relationship_logits)


@pytest.mark.parametrize(
    ("labels", "classes", "problem"),
    [
        (torch.tensor([0, 1]), 2, "single_label_classification"),
        (torch.tensor([0.5, 1.0]), 1, "regression"),
        (torch.tensor([1, 0]), 1, "regression"),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), 3, "multi_label_classification"),
        (torch.tensor([[1, 0, 1], [0, 0, 0]]), 3, "multi_label_classification"),
    ],
    ids=["classes", "regression", "integer regression", "several", "several, integers"],
)
def test_first_labels_decide_the_problem(labels: torch.Tensor, classes: int, problem: str) -> None:
    model = tiny("ForSequenceClassification", num_labels=classes)
    assert model.config.problem_type is None
    model(torch.randint(0, 61, (2, 5)), labels=labels).loss.backward()
    assert model.config.problem_type == problem


def test_refuses_what_it_cannot_encode() -> None:
    model, ids = tiny("Model"), torch.ones(1, 33, dtype=torch.long)
    with pytest.raises(ValueError, match="sequence of 33 tokens does not fit max_position_embeddings=32"):
        model(ids)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(1, 33, 32))


def test_trainer_evaluation_sees_a_prediction_for_every_position(tmp_path) -> None:
    """Sparse prediction leaves evaluation alone: metrics written for transformers' heads work."""
    batch = pretraining_batch(size=6, padded=False)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(6)]
    seen = {}

    def metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
        words, sentences = prediction.predictions
        labels, order = prediction.label_ids
        chosen = labels != -100
        seen.update(words=words.shape, sentences=sentences.shape, order=order.shape)
        return {"accuracy": float((words.argmax(-1)[chosen] == labels[chosen]).mean())}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True
    )
    model = tiny("ForPreTraining")
    trainer = transformers.Trainer(model=model, args=arguments, eval_dataset=rows, compute_metrics=metrics)
    result = trainer.evaluate()
    assert seen == {"words": (6, 12, 61), "sentences": (6, 2), "order": (6,)}
    logits = model.eval()(**batch).prediction_logits
    chosen = batch["labels"] != -100
    expected = (logits.argmax(-1)[chosen] == batch["labels"][chosen]).float().mean().item()
    assert result["eval_accuracy"] == pytest.approx(expected)
