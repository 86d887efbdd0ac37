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


def test_compiles_with_labeled_positions_of_any_number() -> None:
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
