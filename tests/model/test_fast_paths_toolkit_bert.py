"""Dropout, masks, kernels and packing against their plain definitions."""

import pytest
import torch
from bert_oracle import (
    FORMS,
    TINY,
    assert_gradients_agree,
    loss_and_gradients,
    pair,
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


LOWEST = torch.finfo(torch.float32).min
REAL = torch.arange(8) < torch.tensor([[8], [5], [6]])  # (B, T)
ALLOWED = REAL[:, None, None, :] & torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)).gt(0.3)
ALLOWED |= torch.eye(8, dtype=torch.bool)  # every token sees itself
BIAS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def additive(allowed: torch.Tensor, blocked: float = LOWEST) -> torch.Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, blocked)


# what we are given -> what transformers takes for the same attention
MASKS = {
    "padding": (REAL, REAL.long()),
    "padding, int32": (REAL.int(), REAL.long()),
    "padding, uint8": (REAL.to(torch.uint8), REAL.long()),
    "padding, float": (REAL.float(), REAL.long()),
    "padding, bfloat16": (REAL.bfloat16(), REAL.long()),
    "pairs, bool": (ALLOWED[:, 0], ALLOWED),
    "pairs, int": (ALLOWED[:, 0].long(), ALLOWED),
    "4D, bool": (ALLOWED, ALLOWED),
    "4D, int": (ALLOWED.long(), ALLOWED),
    "4D, one row for all": (REAL[:, None, None], REAL.long()),
    "4D, all allowed": (torch.ones(3, 1, 8, 8, dtype=torch.bool), None),
    "additive": (additive(ALLOWED), ALLOWED),
    "additive, nothing masked": (torch.zeros(3, 1, 8, 8), None),
    "additive, one for the batch": (torch.zeros(1, 1, 8, 8), None),
    "additive, one row for all": (additive(REAL[:, None, None]), REAL.long()),
    "additive, minus infinity": (additive(ALLOWED, -torch.inf), ALLOWED),
    "additive, half": (additive(ALLOWED, -6e4).half(), ALLOWED),
    "additive, double": (additive(ALLOWED).double(), ALLOWED),
    "additive, bias by head": (BIAS, BIAS),
}


@pytest.mark.parametrize("path", ["sdpa", "eager", "probabilities", "training with dropout"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_equal_transformers(name: str, path: str) -> None:
    """Each form of mask, each path through attention; a rate of 1e-12 takes the path of dropout, dropping nothing."""
    given, equivalent = MASKS[name]
    theirs, ours = pair("Model", {**TINY, "tie_word_embeddings": True, "hidden_dropout_prob": 0.0}, seed=6)
    if path == "training with dropout":
        for layer in ours.encoder.layer:
            layer.attention.self.dropout.p = 1e-12
    ours.train(path == "training with dropout")
    ours.set_attn_implementation("eager" if path == "eager" else "sdpa")
    ids = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(5))
    expected = theirs.eval()(ids, attention_mask=equivalent).last_hidden_state
    outputs = ours(ids, attention_mask=given, output_attentions=path == "probabilities")
    torch.testing.assert_close(outputs.last_hidden_state[REAL], expected[REAL], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["padding", "4D, bool", "additive"])
def test_rows_that_are_padding_alone_equal_transformers(form: str, implementation: str) -> None:
    """Such a row has no right value, but a number, and the other rows know nothing of it."""
    theirs, ours = pair("Model", {**TINY, "tie_word_embeddings": True}, seed=6)
    theirs.set_attn_implementation(implementation)
    ours.set_attn_implementation(implementation)
    real = REAL.clone()
    real[1] = False
    pairs = real[:, None, None].expand(3, 1, 8, 8)
    mask = {"padding": real.long(), "4D, bool": pairs, "additive": additive(pairs)}[form]
    # transformers' eager attention adds a boolean mask to the scores
    theirs_takes = real.long() if form == "4D, bool" and implementation == "eager" else mask
    ids = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(5))
    expected = theirs.eval()(ids, attention_mask=theirs_takes).last_hidden_state
    outputs = ours.eval()(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blocked", [LOWEST, -1e4])
def test_masks_of_a_wider_type_equal_transformers_in_half_precision(blocked: float, dtype: torch.dtype) -> None:
    """The lowest float32 number, cast, would be minus infinity: a row that is masked altogether would see nothing."""
    theirs, ours = (model.to(dtype).eval() for model in pair("Model", {**TINY, "tie_word_embeddings": True}, seed=7))
    ids = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(5))
    allowed = REAL[:, None, None].expand(3, 1, 8, 8) & torch.tensor([True, False, True])[:, None, None, None]
    expected = theirs(ids, attention_mask=additive(allowed, blocked)).last_hidden_state
    outputs = ours(ids, attention_mask=additive(allowed, blocked)).last_hidden_state
    seeing = [0, 1, 2] if dtype == torch.bfloat16 or blocked > -1e5 else [0, 2]  # half's lowest is less far from 0
    torch.testing.assert_close(outputs[seeing], expected[seeing], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("blocked", [LOWEST, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_additive_masks_never_give_nan(implementation: str, dtype: torch.dtype, blocked: float) -> None:
    """Rows that are masked altogether, in autocast too, where the mask and the scores are of two types."""
    model, ids = tiny("Model"), torch.randint(0, 61, (3, 8))
    model.set_attn_implementation(implementation)
    mask = additive(REAL[:, None, None].expand(3, 1, 8, 8) & torch.tensor([True, False, True])[:, None, None, None])
    mask = mask.masked_fill(mask < 0, blocked)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        states = model(ids, attention_mask=mask).last_hidden_state
    assert states.isfinite().all()
    states.float().square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(3, 8, 8), r"floats with the shape \(3, 8, 8\).*\(B, 1, T, T\)"),
        (torch.ones(8, dtype=torch.long), r"\(B, T\), \(B, T, T\) or \(B, 1, T, T\), got \(8,\)"),
        (torch.ones(3, 1, 1, 8, 8), r"got \(3, 1, 1, 8, 8\)"),
    ],
    ids=["float pairs", "1D", "5D"],
)
def test_masks_that_can_be_read_in_two_ways_are_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("Model")(torch.randint(0, 61, (3, 8)), attention_mask=mask)


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
    """Counted on a million elements; a neighbor in the same 64 random bits says nothing about an element."""
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
