"""The pages say what works: Python blocks run, commands have scripts and flags that exist, links lead somewhere.

Commands are run in test_documentation_commands.py; docs/classify.md runs as a whole in recipes/test_classify_page.py.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from accelerate import Accelerator
from transformers import AutoTokenizer, TrainingArguments

import bert_toolkit
from bert_toolkit import ToolkitBertForPreTraining, ToolkitBertForSequenceClassification
from bert_toolkit.training.arguments import RECIPE_DEFAULTS, ClassifierRunArguments, parse_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "pretraining_step.md"]
# a command that is shown: script, and what follows it; the launcher's own flags come before the script
COMMAND = re.compile(r"(?:accelerate launch|torchrun|python3?|-m) [^`\n]*?((?:recipes|benchmarks)/\w+\.py)([^`\n|)]*)")

# British spellings that have stood here, and their relatives
BRITISH = re.compile(
    r"(?:label|model|travel|cancel|signal)l(?:ed|ing)\b|(?:normal|initial|token|optim|recogn|organ|summar|serial|random|minim"
    r"|maxim|general|regular|special|util|real|quant|standard|vector|parallel|synchron|visual|emphas)is(?:e[ds]?|ing"
    r"|ations?)\b|analys(?:ed|ing)\b|behaviour|neighbour|colour|favour|honour|\bcentred?\b|\bgrey\b|licence|learnt|misspelt",
    re.IGNORECASE,
)
SPELLED = [path for folder in ("bert_toolkit", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
SPELLED += PAGES


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


@pytest.fixture
def readers_script(tmp_path, monkeypatch, tiny_bert_dir, newsgroups_archive):
    """What the pages take as given: the reader's model, data, Trainer and loop, and files in the current folder."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    model = ToolkitBertForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
    model.save_pretrained("runs/cola")
    tokenizer.save_pretrained("runs/cola")
    shutil.copy(newsgroups_archive, ".")
    rows = datasets.Dataset.from_list([{**tokenizer("the dog sleeps today ."), "label": i % 2} for i in range(16)])

    def trainer(whatever_the_reader_has, **settings):
        assert whatever_the_reader_has is ...
        arguments = TrainingArguments("run", max_steps=3, report_to="none", use_cpu=True, disable_tqdm=True)
        collator = transformers.DataCollatorWithPadding(tokenizer)
        return transformers.Trainer(model, arguments, data_collator=collator, train_dataset=rows, **settings)

    optimizer = torch.optim.AdamW(model.parameters())
    batch = transformers.DataCollatorWithPadding(tokenizer)([rows[i] for i in range(4)])
    batch["labels"] = batch.pop("labels") if "labels" in batch else batch.pop("label")
    return {
        "Trainer": trainer,
        "tokenizer": tokenizer,
        "model": model,
        "optimizer": optimizer,
        "accelerator": Accelerator(cpu=True),
        "batch": batch,
        "batches": [batch],
        "loss": model(**batch).loss,
        "step": 50,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "classify.md"], ids=lambda page: page.name)
def test_python_blocks_run(page, readers_script, tiny_bert_dir):
    if page.name == "toy.md":  # what its commands would have left
        ToolkitBertForPreTraining.from_pretrained(tiny_bert_dir).save_pretrained("runs/toy")
        readers_script["tokenizer"].save_pretrained("runs/toy")
    if page.name == "pre-training.md":
        readers_script["model"] = ToolkitBertForPreTraining.from_pretrained(tiny_bert_dir)
    namespace = dict(readers_script)
    for block in blocks(page, "python"):
        if "onnxruntime" in block:  # the oldest versions are tested without it
            pytest.importorskip("onnxruntime")
        exec(compile(block, str(page), "exec"), namespace)


def test_what_readme_shows_is_what_training_health_prints(tmp_path, tiny_bert_dir, caplog):
    """README's first block is printed by a training whose optimizer lacks a layer."""
    (shown,) = (block for block in blocks(ROOT / "README.md", "") if "Training health" in block)
    model = ToolkitBertForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2, num_hidden_layers=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    texts = ["the dog sleeps today .", "a cat runs .", "my friend laughs today ."]
    rows = datasets.Dataset.from_list([{**tokenizer(texts[i % 3]), "label": i % 2} for i in range(48)])
    arguments = TrainingArguments("run", max_steps=60, report_to="none", use_cpu=True, disable_tqdm=True, seed=1)
    arguments.output_dir = str(tmp_path)
    left_out = [value for name, value in model.named_parameters() if ".layer.1." in name]
    held = [value for value in model.parameters() if all(value is not other for other in left_out)]
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        optimizers=(torch.optim.AdamW(held, lr=1e-3), None),
    )
    bert_toolkit.watch(trainer, figures=False)
    trainer.train()
    assert shown.strip() in caplog.text


def commands(page: Path) -> list[tuple[str, str]]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [(script, rest.split(" 2>")[0]) for script, rest in COMMAND.findall(text)]


def test_commands_are_found_at_all():
    assert sum(len(commands(page)) for page in PAGES) >= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_scripts_and_flags_that_exist(page):
    for script, rest in commands(page):
        path = ROOT / script
        assert path.exists(), script
        if script.startswith("recipes/"):
            recipe = runpy.run_path(str(path))
            kinds = [item for item in recipe.values() if is_dataclass(item) and item.__module__ == "<run_path>"]
            kinds += [ClassifierRunArguments, TrainingArguments] if "DEFAULTS" in recipe else []
            parse_arguments(
                kinds,
                ({**RECIPE_DEFAULTS, **recipe["DEFAULTS"]} if "DEFAULTS" in recipe else {}),
                shlex.split(rest, comments=True),
            )
        else:
            source = path.read_text(encoding="utf-8")
            for flag in re.findall(r"--\w+", rest):
                assert f'"{flag}"' in source, f"{script} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_reference_names_everything_public():
    named = re.findall(r"^::: bert_toolkit\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(bert_toolkit.__all__)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    assert sorted(re.findall(r"[\w-]+\.md", navigation)) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize(
    ("address", "made"),
    [
        ("https://example.com/us/", "see [the table](https://example.com/us/blob/main/benchmarks/a.md#b), [x](y.md)"),
        ("", "see the table (`benchmarks/a.md#b` in the repository), [x](y.md)"),
    ],
)
def test_links_out_of_the_site_are_not_dead(address, made):
    text = "see [the table](../benchmarks/a.md#b), [x](y.md)"
    hook = runpy.run_path(str(ROOT / "tools" / "docs_links.py"))
    assert hook["on_page_markdown"](text, {"repo_url": address}) == made


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "GradientFlowCallback" in (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SPELLED, ids=lambda path: str(path.relative_to(ROOT)))
def test_spelling_is_american(path):
    text = path.read_text(encoding="utf-8")
    assert not [found.group() for found in BRITISH.finditer(text) if found.group() != "GREY"]


def test_british_spellings_are_seen():
    assert all(
        map(BRITISH.search, ("first_labelled", "Normalisation", "neighbours", "centre of grey", "it is centred"))
    )
    assert not any(map(BRITISH.search, ("optimistic", "PARALLELISM", "labeled", "specialist", "realistic", "center")))
