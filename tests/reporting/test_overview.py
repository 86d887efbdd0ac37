"""Overview tables count what is there."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, TrainingArguments

from bert_toolkit.reporting.overview import (
    describe_device,
    parameter_groups,
    print_class_balance,
    print_overview,
    print_settings,
    print_token_lengths,
)

BERT = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)


def test_groups_of_bert_are_embeddings_layers_and_head_with_tied_weights_once():
    model = BertForMaskedLM(BERT)
    model.bert.embeddings.requires_grad_(False)
    groups = parameter_groups(model)
    assert list(groups) == ["embeddings", "layer.0", "layer.1", "layer.2", "cls"]
    assert sum(total for total, _ in groups.values()) == sum(p.numel() for p in model.parameters())
    assert sum(trainable for _, trainable in groups.values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_groups_of_another_architecture():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=16, n_layer=2, n_head=2))
    assert list(parameter_groups(model)) == ["wte", "wpe", "h.0", "h.1", "ln_f"]


def test_groups_of_a_plain_module():
    assert parameter_groups(torch.nn.Sequential(torch.nn.Linear(2, 3))) == {"0": (9, 9)}


def test_class_balance_prints_rows_and_shares(capsys):
    print_class_balance({"train": [0, 1, 1, 1], "test": []}, ["no", "yes"])
    printed = capsys.readouterr().out
    assert "3 (75.0%)" in printed
    assert "1 (25.0%)" in printed


def test_token_lengths_print_the_share_truncated(capsys):
    print_token_lengths([4, 8, 8, 8], max_length=8, truncated=1)
    assert "1 of 4 (25.00%) at 8 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("capability", "machine", "asked", "slow"),
    [
        ("AVX2", "x86_64", {"bf16": True}, True),
        ("AVX2", "AMD64", {"bf16_full_eval": True}, True),
        ("DEFAULT", "x86_64", {"bf16": True}, True),
        ("AVX2", "x86_64", {}, False),
        ("AVX512", "x86_64", {"bf16": True}, False),
        ("DEFAULT", "aarch64", {"bf16": True}, False),
    ],
)
def test_bf16_that_is_slower_than_fp32_is_told(monkeypatch, tmp_path, capsys, capability, machine, asked, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: machine)
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", **asked)
    print_overview("Title", {"data": "rows"}, arguments)
    assert ("warning: this processor has no AVX-512" in capsys.readouterr().out) == slow


def test_names_are_whole_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_settings(
        {"validation_matthews_correlation": "0.6940", "data": "rows of a corpus with a long name"}, "Result"
    )
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines if "│" in line]
    assert "".join(name for name, _ in cells) == "validation_matthews_correlationdata"
    assert "…" not in "".join(lines) and max(map(len, lines)) <= 40


def test_one_thread_of_one_process_is_told_as_such(tmp_path):
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    assert describe_device(arguments) == "CPU, 1 process, 1 thread, fp32"
