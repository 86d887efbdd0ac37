"""What people attach to modules works: hooks, adapters, other modules in their place, weights kept elsewhere."""

import pytest
import torch
import torch.nn.utils.prune
from accelerate import cpu_offload, disk_offload, dispatch_model
from bert_oracle import FORMS, HEADS, TINY, assert_gradients_agree, loss_and_gradients, pair, pretraining_batch, tiny
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
IDS = torch.randint(5, 61, (3, 8), generator=torch.Generator().manual_seed(1))
PRE = {"layer_norm_placement": "pre", "position_embedding_type": "sinusoidal"}


def shapes_seen(model: nn.Module, *arguments: object, **inputs: object) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of what each module returns, by forward hooks."""
    seen: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str):
        def hook(module: nn.Module, arguments: tuple, output: object) -> None:
            first = output if isinstance(output, torch.Tensor) else output[0]
            if isinstance(first, torch.Tensor):
                seen.setdefault(name, []).append(tuple(first.shape))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    model(*arguments, **inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", HEADS)
def test_hooks_fire_where_those_of_transformers_do_and_see_the_same_shapes(name: str) -> None:
    theirs, ours = pair(name, {**TINY, "tie_word_embeddings": True}, seed=1)
    theirs.set_attn_implementation("eager")
    expected, seen = shapes_seen(theirs.eval(), IDS), shapes_seen(ours.eval(), IDS)
    # the probabilities exist in the explicit formula alone, and our activations are functions
    ours_too = {key for key, _ in ours.named_modules() if not key.endswith("attention.self.dropout")}
    assert seen == {key: shapes for key, shapes in expected.items() if key in ours_too}


@FORMS
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_each_kind_fire_on_each_table_and_change_nothing(kind: str, training: bool, form: dict) -> None:
    batch = pretraining_batch()
    expected, expected_gradients = loss_and_gradients(tiny("ForPreTraining", **form).train(training), batch)
    model = tiny("ForPreTraining", **form).train(training)
    fired = []
    for name in TABLES:
        table = getattr(model.bert.embeddings, name)
        register = getattr(table, f"register_{kind}_hook")
        register(lambda *_, name=name: fired.append(name))
    outputs, gradients = loss_and_gradients(model, batch)
    expected_to_fire = set(TABLES)
    if kind.startswith("full_backward") and form:
        expected_to_fire.remove("position_embeddings")  # sinusoids have no gradient
    assert sorted(fired) == sorted(expected_to_fire)
    assert torch.equal(outputs.loss, expected.loss)
    assert_gradients_agree(gradients, expected_gradients, 1e-6)


def test_a_hook_on_every_module_fires_on_the_tables() -> None:
    model, seen = tiny("Model"), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(IDS)
    finally:
        handle.remove()
    assert all(any(module is getattr(model.embeddings, name) for module in seen) for name in TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_a_hook_can_change_what_a_table_returns(table: str) -> None:
    theirs, ours = pair("Model", {**TINY, "tie_word_embeddings": True}, seed=1)
    for model in (theirs, ours):
        getattr(model.embeddings, table).register_forward_hook(lambda module, arguments, output: output * 2)
    torch.testing.assert_close(ours.eval()(IDS).last_hidden_state, theirs.eval()(IDS).last_hidden_state)


@pytest.mark.parametrize("table", TABLES)
def test_lora_trains_each_table(table: str) -> None:
    """peft on our model and on transformers' with the same weights: outputs, and gradients that are not zero."""
    theirs, ours = pair("Model", {**TINY, "tie_word_embeddings": True, "hidden_dropout_prob": 0.0}, seed=1)
    results = []
    for model in (theirs, ours):
        adapted = get_peft_model(model.eval(), LoraConfig(target_modules=[table], r=2, init_lora_weights=False))
        generator = torch.Generator().manual_seed(9)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(generator=generator)
        outputs = adapted(IDS).last_hidden_state
        outputs.square().sum().backward()
        results.append((outputs, {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}))
    (expected, expected_gradients), (outputs, gradients) = results
    torch.testing.assert_close(outputs, expected)
    assert gradients and all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert_gradients_agree(gradients, expected_gradients, 1e-5)


@pytest.mark.parametrize("table", ["position_embeddings", "token_type_embeddings"])
@pytest.mark.parametrize("form", ["parametrized", "pruned", "with a padding row", "with a largest norm"])
def test_tables_that_are_more_than_their_weight(form: str, table: str) -> None:
    theirs, ours = pair("Model", {**TINY, "tie_word_embeddings": True, "hidden_dropout_prob": 0.0}, seed=1)
    results = []
    for model in (theirs.eval(), ours.eval()):
        module = getattr(model.embeddings, table)
        if form == "parametrized":
            parametrize.register_parametrization(module, "weight", nn.Tanh())
        elif form == "pruned":
            nn.utils.prune.custom_from_mask(module, "weight", torch.arange(32).expand_as(module.weight) % 2)
        elif form == "with a padding row":
            module.padding_idx = 0
        else:
            module.max_norm = 0.5
        outputs = model(IDS).last_hidden_state
        outputs.square().sum().backward()
        results.append((outputs, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_gradients), (outputs, gradients) = results
    torch.testing.assert_close(outputs, expected)
    assert_gradients_agree(gradients, expected_gradients, 1e-5)


def test_a_longer_table_in_the_place_of_the_positions() -> None:
    model = tiny("Model").eval()
    short = model(IDS).last_hidden_state
    old = model.embeddings.position_embeddings
    model.embeddings.position_embeddings = nn.Embedding.from_pretrained(
        torch.cat((old.weight.data, torch.randn(32, 32)))
    )
    assert torch.equal(model(IDS).last_hidden_state, short)
    assert model(IDS.repeat(1, 7)).last_hidden_state.shape == (3, 56, 32)


# --- weights kept elsewhere ----------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_models_give_the_same(where: str, name: str, form: dict, tmp_path) -> None:
    expected = tiny(name, **form).eval()(IDS).to_tuple()
    model = tiny(name, **form).eval()
    if where == "cpu":
        cpu_offload(model, execution_device="cpu", offload_buffers=True)
    else:
        disk_offload(model, tmp_path, execution_device="cpu", offload_buffers=True)
    assert any(parameter.is_meta for parameter in model.parameters())
    for one, other in zip(model(IDS).to_tuple(), expected, strict=True):
        assert torch.equal(one, other)


def parts(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]


@pytest.mark.parametrize("form", [{}, PRE], ids=["post-learned", "pre-sinusoidal"])
@pytest.mark.parametrize("name", ["ForPreTraining", "ForSequenceClassification"])
def test_each_part_can_be_kept_on_disk(name: str, form: dict, tmp_path) -> None:
    """A device map that sends one module to the disk and leaves the rest, for every module of the model."""
    expected = tiny(name, **form).eval()(IDS).to_tuple()
    tied = {"bert.embeddings.word_embeddings", "cls.predictions.decoder"}  # stays where the other one is
    for number, part in enumerate(parts(tiny(name, **form))):
        model = tiny(name, **form).eval()
        leaves = [n for n, m in model.named_modules() if n and next(m.parameters(recurse=False), None) is not None]
        device_map = {leaf: "cpu" for leaf in leaves if not (leaf + ".").startswith(part + ".")}
        if part.startswith("cls.predictions."):  # which has a parameter of its own, too
            device_map["cls.predictions.bias"] = device_map.pop("cls.predictions")
        device_map[part] = "disk"
        dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path / str(number), force_hooks=True)
        if part not in tied:
            assert any(parameter.is_meta for parameter in model.parameters()), part
        for one, other in zip(model(IDS).to_tuple(), expected, strict=True):
            assert torch.equal(one, other), part
