"""Dropout, masks, kernels and packing against their plain definitions."""

import pytest
import torch
from bert_oracle import (
    FORMS,
    assert_gradients_agree,
    loss_and_gradients,
    pretraining_batch,
    tiny,
)
from torch import nn

from bert_toolkit.model import fast_paths_toolkit_bert, modeling_toolkit_bert


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
    assert not fast_paths_toolkit_bert.can_pack(
        batch["attention_mask"], model.bert
    )  # on the CPU there is no such kernel

    monkeypatch.setattr(fast_paths_toolkit_bert, "varlen_attn", varlen_reference)
    monkeypatch.setattr(modeling_toolkit_bert, "can_pack", lambda *_: True)
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
        assert fast_paths_toolkit_bert.can_pack(batch["attention_mask"], model.bert)
        loss = model(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected.loss, rtol=2e-2, atol=0)
    for name, parameter in model.named_parameters():
        if "key.bias" not in name:
            cosine = torch.cosine_similarity(parameter.grad.flatten(), expected_gradients[name].flatten(), dim=0)
            assert cosine > 0.98, name


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.03])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    """Counted on a million elements; a neighbour in the same 64 random bits says nothing about an element."""
    dropout, size = fast_paths_toolkit_bert.ToolkitBertDropout(rate), 1_000_003
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
    x, layer = torch.randn(3, 5), fast_paths_toolkit_bert.ToolkitBertDropout
    assert torch.equal(layer(0.0)(x), x) and torch.equal(layer(0.5).eval()(x), x)
    assert not layer(1.0)(x).any()
    assert layer(0.5)(torch.empty(0, 4)).shape == (0, 4)
    assert layer(0.5)(x.bfloat16()).dtype == torch.bfloat16


def test_attention_dropout_reaches_the_fused_kernel() -> None:
    model, ids = tiny("Model", attention_probs_dropout_prob=0.5).train(), torch.randint(0, 61, (2, 8))
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
