"""The model checkpointed, compiled, in half precision and in Trainer."""

import pytest
import torch
import transformers
from bert_oracle import (
    FORMS,
    HEADS,
    assert_gradients_agree,
    loss_and_gradients,
    pretraining_batch,
    random_case,
    tiny,
)


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


# One graph or one program takes ten seconds: a few heads in every run, the others are slow ones.
COMPILED = [
    pytest.param(name, marks=() if name in ("ForMaskedLM", "ForSequenceClassification") else pytest.mark.slow)
    for name in HEADS
]
EXPORTED = [
    pytest.param(
        name,
        strict,
        marks=()
        if name == "ForSequenceClassification" or (name == "ForPreTraining" and not strict)
        else pytest.mark.slow,
        id=f"{name}-{'strict' if strict else 'non-strict'}",
    )
    for name in HEADS
    for strict in (True, False)
]


@pytest.mark.parametrize("name", COMPILED)
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


def test_compiles_with_labeled_positions_of_any_number() -> None:
    """Sparse shapes are data: Trainer's `torch_compile` breaks the graph there and goes on."""
    torch._dynamo.reset()
    model, batch = tiny("ForPreTraining").train(), pretraining_batch()
    expected, expected_gradients = loss_and_gradients(model, batch)
    outputs, gradients = loss_and_gradients(torch.compile(model, backend="aot_eager"), batch)
    torch.testing.assert_close(outputs.loss, expected.loss)
    gradients = {key.removeprefix("_orig_mod."): value for key, value in gradients.items()}
    assert_gradients_agree(gradients, expected_gradients, 1e-5)


@pytest.fixture
def traced_inputs() -> tuple[dict, dict]:
    """An example without padding, as people trace with, and a batch of the same shape with some."""
    ids = torch.randint(5, 61, (3, 10), generator=torch.Generator().manual_seed(2))
    types = (torch.arange(10) > 5).long().expand(3, 10)
    mask = (torch.arange(10) < torch.tensor([[10], [4], [7]])).long()
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
    return example, {"input_ids": ids.flip(1), "attention_mask": mask, "token_type_ids": types.flip(1)}


@FORMS
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_keeps_the_mask(name: str, form: dict, traced_inputs: tuple) -> None:
    """`torch.jit.trace` sees one batch without padding; the trace must serve others, longer and padded."""
    example, padded = traced_inputs
    model = tiny(name, **form, return_dict=False).eval()
    traced = torch.jit.trace(model, tuple(example.values()), check_trace=False)
    longer = {key: torch.cat((value, value[:2]), 0).repeat(1, 2) for key, value in padded.items()}
    for batch in (example, padded, longer):
        for one, other in zip(traced(*batch.values()), model(*batch.values()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@FORMS
def test_a_trace_in_training_keeps_the_dropout(form: dict, traced_inputs: tuple) -> None:
    """Dropout by 16 bits has the shape of one batch; a trace draws for the batch that it is given."""
    example, padded = traced_inputs
    model = tiny("Model", **form, return_dict=False, hidden_dropout_prob=0.5).train()
    traced = torch.jit.trace(model, tuple(example.values()), check_trace=False)
    longer = [value.repeat(2, 1) for value in padded.values()]
    one, other = traced(*longer)[0], traced(*longer)[0]
    assert one.shape == (6, 10, 32) and not torch.equal(one, other)


@FORMS
@pytest.mark.parametrize(("name", "strict"), EXPORTED)
def test_an_exported_program_keeps_the_mask(name: str, strict: bool, form: dict, traced_inputs: tuple) -> None:
    """`torch.export` with both dimensions free, from a batch without padding."""
    example, padded = traced_inputs
    model = tiny(name, **form).eval()
    batch_size, length = torch.export.Dim("batch"), torch.export.Dim("length", max=32)
    shapes = {key: {0: batch_size, 1: length} for key in example}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=strict).module()
    longer = {key: torch.cat((value, value[:2]), 0).repeat(1, 2) for key, value in padded.items()}
    for batch in (example, padded, longer):
        expected, outputs = model(**batch), program(**batch)
        for key, value in expected.items():
            torch.testing.assert_close(outputs[key], value, rtol=1e-5, atol=1e-5)


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
