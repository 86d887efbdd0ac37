"""ToolkitBert against transformers' BERT and torch.nn.TransformerEncoderLayer."""

import doctest

import pytest
import torch
import transformers
from bert_oracle import (
    FORMS,
    HEADS,
    TINY,
    assert_gradients_agree,
    head,
    loss_and_gradients,
    pair,
    pretraining_batch,
    random_case,
    randomize,
    tiny,
)
from torch import nn

import bert_toolkit
from bert_toolkit import ToolkitBertConfig
from bert_toolkit.model import configuration_toolkit_bert, modeling_toolkit_bert

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

    # training, without dropout: the same loss and gradients, from the labeled positions alone
    sparse, sparse_gradients = loss_and_gradients(ours.train(), batch)
    if name in ("ForPreTraining", "ForMaskedLM"):
        logits = "logits" if name == "ForMaskedLM" else "prediction_logits"
        chosen = batch["labels"] != -100
        assert sparse[logits].shape == (chosen.sum(), settings["vocab_size"])
        torch.testing.assert_close(sparse[logits], expected[logits][chosen], rtol=tolerance, atol=tolerance)
    if "loss" in expected:
        torch.testing.assert_close(sparse.loss, expected.loss, rtol=tolerance, atol=0)
    assert_gradients_agree(sparse_gradients, expected_gradients, tolerance)


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
    model = randomize(bert_toolkit.ToolkitBertModel(config, add_pooling_layer=False).double(), seed=5)
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


def test_last_hidden_state_is_the_normalized_one_in_the_pre_form() -> None:
    model = tiny("Model", layer_norm_placement="pre")
    outputs = model(torch.randint(0, 61, (2, 5)), output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)


@FORMS
@pytest.mark.parametrize("name", ["ForPreTraining", "ForMaskedLM"])
def test_sparse_prediction_is_exact(name: str, form: dict) -> None:
    """All, labeled, and a static number of positions: one loss, one gradient."""
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
def test_no_labeled_position_gives_zero_loss_and_every_gradient(settings: dict, training: bool, num_items) -> None:
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


IGNORED = [
    {"use_cache": False},
    {"use_cache": True},
    {"past_key_values": None},
    {"head_mask": None},
    {"cross_attn_head_mask": None},
    {"encoder_hidden_states": None, "encoder_attention_mask": None},
    {"cache_position": None},
    {"return_dict": None},
    {"output_router_logits": True},
    {"is_causal": False},
    {"special_tokens_mask": torch.zeros(4, 12), "length": [12] * 4},  # what a tokenizer adds on request
]


@pytest.mark.parametrize("arguments", IGNORED, ids=lambda arguments: " ".join(arguments))
@pytest.mark.parametrize("name", HEADS)
def test_arguments_without_meaning_for_an_encoder_are_ignored_as_by_transformers(name: str, arguments: dict) -> None:
    theirs, ours = pair(name, {**TINY, "tie_word_embeddings": True}, seed=1)
    ids = pretraining_batch()["input_ids"]
    expected, outputs = theirs.eval()(ids, **arguments), ours.eval()(ids, **arguments)
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"past_key_values": transformers.DynamicCache()}, ValueError, "is an encoder.* without past_key_values"),
        ({"head_mask": torch.ones(2, 4)}, ValueError, "without head_mask"),
        ({"encoder_hidden_states": torch.zeros(4, 3, 32)}, ValueError, "without encoder_hidden_states"),
        ({"is_causal": True}, ValueError, "without is_causal"),
        ({"attention_masks": None}, TypeError, r"unexpected keyword argument.*'attention_masks'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", HEADS)
def test_arguments_that_would_change_the_answer_are_refused(name: str, arguments, error, message) -> None:
    """transformers takes these for BERT, too, and does nothing with them; so it does with misspelled names."""
    with pytest.raises(error, match=message):
        tiny(name)(pretraining_batch()["input_ids"], **arguments)


LABELS = [
    pytest.param(torch.tensor([0, 1]), 2, "single_label_classification", id="classes"),
    pytest.param(torch.tensor([[0], [2]]), 3, "single_label_classification", id="classes in a column"),
    pytest.param(torch.tensor([[1], [0]]), 2, "single_label_classification", id="two classes in a column"),
    pytest.param(torch.tensor([2, 0], dtype=torch.int32), 3, "single_label_classification", id="int32"),
    pytest.param(torch.tensor([[2], [-100]]), 3, "single_label_classification", id="column, one without label"),
    pytest.param(torch.tensor([True, False]), 2, "single_label_classification", id="booleans"),
    pytest.param(torch.tensor([0.5, 1.0]), 1, "regression", id="regression"),
    pytest.param(torch.tensor([[0.5], [1.0]]), 1, "regression", id="regression in a column"),
    pytest.param(torch.tensor([1, 0]), 1, "regression", id="integer regression"),
    pytest.param(torch.tensor([[1.0, 0, 1], [0, 0, 0]]), 3, "multi_label_classification", id="several"),
    pytest.param(torch.tensor([[1, 0, 1], [0, 0, 0]]), 3, "multi_label_classification", id="several, integers"),
    pytest.param(torch.tensor([[True, False], [True, True]]), 2, "multi_label_classification", id="several, bools"),
]


@pytest.mark.parametrize(("labels", "classes", "problem"), LABELS)
def test_first_labels_decide_the_problem(labels: torch.Tensor, classes: int, problem: str) -> None:
    """As transformers decides where it can take the labels, with its loss and gradients."""
    settings = {**TINY, "tie_word_embeddings": True, "num_labels": classes}
    theirs, ours = pair("ForSequenceClassification", settings, seed=1)
    assert ours.config.problem_type is None
    ids = torch.randint(0, 61, (2, 5))
    outputs, gradients = loss_and_gradients(ours.eval(), {"input_ids": ids, "labels": labels})
    assert ours.config.problem_type == problem
    # transformers' losses want one type of number each
    theirs.config.problem_type = problem
    labels = labels.long() if problem == "single_label_classification" else labels.float()
    expected, expected_gradients = loss_and_gradients(theirs.eval(), {"input_ids": ids, "labels": labels})
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-5, atol=0)
    assert_gradients_agree(gradients, expected_gradients, 1e-5)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor([0.0, 1.0]), None),
        (torch.tensor([[0.0], [1.0]]), None),
        (torch.tensor([[0, 1], [1, 0]]), None),
        (torch.tensor([0, 1, 2]), "single_label_classification"),
        (torch.tensor([0, 1]), "multi_label_classification"),
        (torch.tensor([[0.5], [0.1]]), "regression"),
    ],
    ids=["floats", "floats in a column", "two of three", "three of two", "ids for several", "one of three numbers"],
)
def test_labels_that_do_not_fit_are_one_clear_error(labels: torch.Tensor, problem: str | None) -> None:
    """Three classes, two sequences; a problem that was only guessed is not kept."""
    model = tiny("ForSequenceClassification", num_labels=3, problem_type=problem)
    message = r"labels of shape .*(class ids|numbers|0 or 1).*problem_type"
    with pytest.raises(ValueError, match=message):
        model(torch.randint(0, 61, (2, 5)), labels=labels)
    assert model.config.problem_type == problem


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", HEADS[1:])
def test_labels_of_other_integers_and_in_a_column_are_taken(name: str, dtype: torch.dtype) -> None:
    settings, batch = random_case(1, name, padded=True)
    if name == "ForSequenceClassification":
        settings["num_labels"], batch["labels"] = 3, torch.randint(0, 3, (len(batch["input_ids"]),))
    theirs, ours = pair(name, settings, 1)
    expected = theirs.eval()(**batch).loss
    named = [key for key in batch if "label" in key or key in ("start_positions", "end_positions")]
    columns = {
        key: batch[key].to(dtype)[..., None] if batch[key].dim() == 1 else batch[key].to(dtype) for key in named
    }
    torch.testing.assert_close(ours.eval()(**{**batch, **columns}).loss, expected, rtol=1e-5, atol=1e-5)


def test_refuses_what_it_cannot_encode() -> None:
    model, ids = tiny("Model"), torch.ones(1, 33, dtype=torch.long)
    with pytest.raises(ValueError, match="sequence of 33 tokens does not fit max_position_embeddings=32"):
        model(ids)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(ids, inputs_embeds=torch.zeros(1, 33, 32))


@pytest.mark.parametrize("module", [configuration_toolkit_bert, modeling_toolkit_bert], ids=lambda m: m.__name__)
def test_examples_run(module) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted >= 2 and not failed
