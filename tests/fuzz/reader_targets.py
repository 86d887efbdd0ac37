"""What the fuzz tests damage: for each reader how a file is written, and how it is read."""

import dataclasses
import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import torch
import yaml
from annotated_texts import COLUMNS, TAGGED_LINES, TAGGED_LISTS, read_questions, read_tagged, write_questions
from input_mutations import mutate
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bert_toolkit.data.class_folders import read_class_folders
from bert_toolkit.data.cola import read_cola_file
from bert_toolkit.data.documents import DocumentFiles, sentences_of
from bert_toolkit.data.labeled_tables import choose_columns, load_labeled_tables
from bert_toolkit.data.labels import learn_labels
from bert_toolkit.data.newsgroups import load_newsgroups
from bert_toolkit.data.tables import Table, read_table
from bert_toolkit.errors import InputError
from bert_toolkit.health.findings import Finding, as_json
from bert_toolkit.health.history import HealthHistory
from bert_toolkit.health.judge import HealthJudge
from bert_toolkit.monitoring.gradient_flow import GradientFlowRecord
from bert_toolkit.monitoring.parameter_roles import ParameterInfo
from bert_toolkit.monitoring.record_file import load_records, save_records
from bert_toolkit.pretraining.tokenized_documents import TokenizedDocuments
from bert_toolkit.training.arguments import parse_arguments
from bert_toolkit.training.checkpoints import MARKER, checkpoint_to_resume, is_whole_checkpoint

TEXTS = ["the dog sleeps", 'he said "no", twice', "naïve Ünïcode 日本", "a\u2028b", "one two three four", "{x} %s $y$"]
LABELS = ["pos", "neg"]


class Target(NamedTuple):
    """A reader under test.

    Args:
        write: Writes a damaged input into an empty folder.
        read: Reads it, and asserts that what was accepted makes sense.
        count: Inputs in an ordinary run.
    """

    write: Callable[[Path, Random], None]
    read: Callable[[Path], Any]
    count: int


def damaged_file(name: str, *contents: bytes) -> Callable[[Path, Random], None]:
    """Writes one of the contents, damaged."""
    return lambda folder, random: (folder / name).write_bytes(mutate(random.choice(contents), random)) and None


# CoLA


COLA = "\n".join(f"src\t{i % 2}\t{'*' * (1 - i % 2)}\t{text}" for i, text in enumerate(TEXTS * 2)).encode()


def read_cola(folder: Path) -> None:
    rows = read_cola_file(folder / "a.tsv")
    assert set(rows["label"]) == {0, 1}
    assert all(text.strip() for text in rows["sentence"])


# tables: one class, several labels in lists and cells and columns, numbers, pairs


def delimited(delimiter: str, quote: Callable[[str], str]) -> list[bytes]:
    tables = [
        (["id", "text", "label"], [[str(i), text, LABELS[i % 2]] for i, text in enumerate(TEXTS * 2)]),
        (["premise", "hypothesis", "label"], [[text, text[::-1], str(i % 3)] for i, text in enumerate(TEXTS * 2)]),
        (["sentence", "score"], [[text, f"{i / 4 - 1}"] for i, text in enumerate(TEXTS * 2)]),
        (["text", "label"], [[text, ["0", "1.0", "0.0", "1"][i % 4]] for i, text in enumerate(TEXTS * 2)]),
        (
            ["re\u0301ponse", "label"],
            [[text, ["e\u0301", "\u00e9", "E\u0301"][i % 3]] for i, text in enumerate(TEXTS)],
        ),
    ]
    return ["\n".join(delimiter.join(map(quote, row)) for row in [header, *rows]).encode() for header, rows in tables]


def doubled_quotes(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if any(mark in field for mark in '",\n') else field


OBJECTS = [
    [{"text": text, "label": LABELS[i % 2], "extra": None} for i, text in enumerate(TEXTS * 2)],
    [{"text": text, "labels": LABELS[: i % 3]} for i, text in enumerate(TEXTS * 2)],
    [{"text": text, "label": i / 4} for i, text in enumerate(TEXTS * 2)],
    [{"sentence1": text, "sentence2": "x", "label": bool(i % 2)} for i, text in enumerate(TEXTS * 2)],
    [{"text": text, "labels": [i % 2, i % 3 % 2, 1]} for i, text in enumerate(TEXTS * 2)],
    [{"text": text, "labels": [float(i % 2), float(i % 3 % 2)]} for i, text in enumerate(TEXTS * 2)],
]
JSON_LINES = [
    "\n".join(json.dumps(row, ensure_ascii=escape) for row in rows).encode() for rows in OBJECTS for escape in (0, 1)
]
JSON_LISTS = [json.dumps(rows, indent=indent).encode() for rows in OBJECTS for indent in (None, 1)]


def parquet_bytes(columns: dict[str, Any], **settings: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, **settings)
    return file.getvalue()


PARQUETS = [
    parquet_bytes({name: [row[name] for row in rows] for name in rows[0]}, **settings)
    for rows in OBJECTS
    for settings in (
        {},
        {"compression": "none", "use_dictionary": False},
        {"compression": "gzip", "row_group_size": 3},
    )
]
CELLS = [None, "", " ", "x", "pos", 0, 1, -1, 2.5, float("nan"), float("inf"), True, [], ["pos"], [None], [1], b"\xff"]


def write_parquet(folder: Path, random: Random) -> None:
    if random.random() < 0.6:
        return damaged_file("a.parquet", *PARQUETS)(folder, random)
    rows = random.choice(OBJECTS)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for _ in range(random.choice([1, 2, 4])):  # damage that a whole file can carry
        name = random.choice(list(columns))
        columns[name] = list(columns[name])
        columns[name][random.randrange(len(rows))] = random.choice(CELLS)
    if random.random() < 0.2:
        columns[random.choice(["text", "label", "", "\n", "labels"])] = [random.choice(CELLS)] * len(rows)
    try:
        content = parquet_bytes(columns)
    except (pyarrow.ArrowException, TypeError, OverflowError):  # columns that no Parquet file can hold
        content = mutate(PARQUETS[0], random)
    (folder / "a.parquet").write_bytes(content)
    return None


def read_labeled(folder: Path, **options: Any) -> None:
    """All that `load_labeled_tables` does up to the rows themselves."""
    (path,) = folder.iterdir()
    table = read_table(path)
    columns = choose_columns(table)
    scheme = learn_labels(table, columns.label, **options)
    check_labels(table, scheme.encode(table), scheme.problem_type, scheme.names)
    for column in columns.text:
        check_texts(table.texts(column))
    for row in range(len(table)):
        assert table.place(row).startswith(str(path))


def read_separated(folder: Path) -> None:
    read_labeled(folder, separator=",")


def check_texts(texts: list[str]) -> None:
    assert all(text.strip() and text.encode() for text in texts)


def check_labels(table: Table, labels: list, problem_type: str, names: list[str]) -> None:
    assert len(labels) == len(table)
    assert len(set(names)) == len(names)
    assert all(name and name == name.strip() and name.encode() for name in names) or len(names) == 1
    if problem_type == "regression":
        assert np.isfinite(np.asarray(labels, dtype=np.float32)).all()
    elif problem_type == "multi_label_classification":
        assert np.isin(np.asarray(labels), (0.0, 1.0)).all() and np.asarray(labels).shape[1] == len(names)
    else:
        assert set(labels) <= set(range(len(names))) and len(set(labels)) > 1


def write_any_table(folder: Path, random: Random) -> None:
    files = [("a.csv", delimited(",", doubled_quotes)), ("a.tsv", delimited("\t", str)), ("a.jsonl", JSON_LINES)]
    name, contents = random.choice(files)
    return damaged_file(name, *contents)(folder, random)


def read_splits(folder: Path) -> None:
    (path,) = folder.iterdir()
    corpus, _ = load_labeled_tables(path, test_fraction=0.2, validation_fraction=0.2)
    sizes = [len(split) for split in (corpus.train, corpus.validation, corpus.test)]
    assert min(sizes) > 0
    places = [place for split in (corpus.train, corpus.validation, corpus.test) for place in split["place"][:]]
    assert len(set(places)) == sum(sizes), "a row is in one split only"


# folders of classes


def write_class_folders(folder: Path, random: Random) -> None:
    names = ["a", "b"] if random.random() < 0.5 else ["train/a", "train/b", "test/a", "test/b"]
    for name in names:
        if random.random() < 0.9:
            (folder / name).mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(TEXTS):
        place = random.choice([*names, names[0], "", ".", "train", "c/d"])
        path = folder / place / random.choice([f"{i}.txt", f"{i}", ".hidden", "._1", "Thumbs.db", "ü", "new\nline"])
        if path.parent.is_dir() and not path.is_dir():
            path.write_bytes(mutate(text.encode(), random) if random.random() < 0.3 else text.encode())


def read_folders(folder: Path) -> None:
    for table in read_class_folders(folder).values():
        check_texts(table.texts("text"))
        check_texts(table.texts("label"))


# 20 newsgroups


POSTS = {
    f"20news-bydate-{split}/{group}/{number}": f"From: me\n\n{number} writes:\n> quoted\n{text}\n--\nme\n".encode()
    for split in ("train", "test")
    for group in ("alt.atheism", "sci.space")
    for number, text in enumerate(TEXTS)
}


def write_newsgroups(folder: Path, random: Random) -> None:
    """Every byte is text in latin-1, so what can be wrong is which posts there are."""
    gone = random.choice(["", "", "train", "test", "test/sci.space", "train/alt.atheism", "alt.atheism"])
    for name, content in POSTS.items():
        if not (gone and gone in name) and random.random() < 0.9:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(mutate(content, random) if random.random() < 0.2 else content)
            if random.random() < 0.1:
                (folder / name).with_name(random.choice([".DS_Store", "._1", "desktop.ini"])).write_bytes(content)
    (folder / "20news-bydate-train").mkdir(exist_ok=True)


def archive_bytes() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in POSTS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


ARCHIVE = archive_bytes()


def write_newsgroups_archive(folder: Path, random: Random) -> None:
    """Damage before or after compression."""
    content = (
        gzip.compress(mutate(ARCHIVE, random), compresslevel=1)
        if random.random() < 0.6
        else mutate(gzip.compress(ARCHIVE, compresslevel=1, mtime=0), random)
    )
    (folder / "20news-bydate.tar.gz").write_bytes(content)


def read_newsgroups(folder: Path) -> None:
    corpus = load_newsgroups(data_dir=folder, categories=None, remove=("headers", "footers", "quotes"))
    assert set(corpus.train["label"]) <= set(range(len(corpus.label_names)))
    assert all(source.split("/")[1].isdecimal() for source in corpus.train["source"])


# documents for pre-training


SENTENCES = [
    "Mr. Smith came at 5 p.m. today! Did he?",
    "Да. Нет! А. С. Пушкин.",
    "好吗？“是的。”他说。",
    "Τι; Ναι.",
    "नहीं। हाँ।",
]
DOCUMENTS = "\n".join(f"{text}. {SENTENCES[i % 5]}\n{text}\n" for i, text in enumerate(TEXTS)).encode()
DOCUMENT_LINES = [
    "\n".join(json.dumps({"text": f"{text}. One. Two."}) for text in TEXTS).encode(),
    "\n".join(json.dumps({"text": [text, "A second sentence."]}) for text in TEXTS).encode(),
]


def read_documents(name: str, split: str | None = None) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        documents = [sentences_of(document) for document in DocumentFiles([folder / name], documents_split=split)]
        assert all(sentence.encode() and "\0" not in sentence for document in documents for sentence in document)
        tokenized = TokenizedDocuments.from_documents(documents, TOKENIZER)
        assert len(tokenized) <= len(documents)
        assert tokenized.sentence_starts[-1] == len(tokenized.tokens)

    return read


def write_tokenized(folder: Path, random: Random) -> None:
    """A corpus on disk of which one file is damaged or gone."""
    victim = random.choice(sorted(TOKENIZED))
    for name, content in TOKENIZED.items():
        if name != victim:
            (folder / name).write_bytes(content)
        elif random.random() < 0.9:
            (folder / name).write_bytes(mutate(content, random))


def read_tokenized(folder: Path) -> None:
    corpus = TokenizedDocuments.open(folder)
    assert corpus.document_starts[-1] == len(corpus.sentence_starts) - 1
    assert corpus.sentence_starts[-1] == len(corpus.tokens)


# files of a run: monitoring records, checkpoints, settings


PARAMETERS = {name: ParameterInfo(name, "matrix", "layer.0", name, True) for name in ("query", "key")}


def gradient_records() -> list[GradientFlowRecord]:
    values = np.array([0.5, 0.25])
    return [
        GradientFlowRecord(step, ("query", "key"), np.array([4, 4]), values, values, values, values, missing=("key",))
        for step in (1, 2, 3)
    ]


def small_model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def written(save: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def three_samples(path: Path) -> None:
    history = HealthHistory(small_model(), last_step=10)
    history.shorten(3)
    history.save(path)


def one_finding(path: Path) -> None:
    finding = Finding(3, "vanishing", ("query",), ("layer.0",), 1e-9, 1e-7, "seen", "cause", "remedy")
    case = {"event": "finding", **as_json(finding), "samples": 3, "last_step": 4, "symptom_of": None}
    path.write_text("\n".join(map(json.dumps, [case, {"event": "verdict"}, case])))


def damaged_npz(content: bytes) -> Callable[[Path, Random], None]:
    """Damages the zip file, or one array inside of which the checksum is then right."""

    def write(folder: Path, random: Random) -> None:
        if random.random() < 0.4:
            (folder / "a.npz").write_bytes(mutate(content, random))
            return
        with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(folder / "a.npz", "w") as damaged:
            victim = random.choice(whole.namelist())
            for name in whole.namelist():
                array = whole.read(name)
                if name != victim:
                    damaged.writestr(name, array)
                elif random.random() < 0.8:
                    damaged.writestr(name, mutate(array, random))

    return write


def read_records(folder: Path) -> None:
    for record in load_records(folder / "a.npz", GradientFlowRecord):
        assert len(record.names) == len(record.mean) == len(record.zero_share)
        assert isinstance(record.step, int)


def read_samples(folder: Path) -> None:
    history = HealthHistory(small_model(), last_step=10)
    if history.load(folder / "a.npz", last_step=2):
        assert len(history) == len(history.step) <= 256
        assert history.gradient.shape == (len(history), len(history.names))


def read_findings(folder: Path) -> None:
    judge = HealthJudge()
    judge.load(folder / "a.jsonl", last_step=10)
    for finding in judge.findings:
        assert isinstance(finding.rule, str)


CHECKPOINT = {"model.safetensors": b"x" * 20, "trainer_state.json": b"{}", "nested/rng_state.pth": b"y" * 7}


def write_checkpoint(folder: Path, random: Random) -> None:
    sizes = {name: len(content) for name, content in CHECKPOINT.items()}
    marker = json.dumps(sizes, indent=1).encode()
    checkpoint = folder / "checkpoint-3"
    for name, content in CHECKPOINT.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(mutate(content, random) if random.random() < 0.3 else content)
    (checkpoint / MARKER).write_bytes(mutate(marker, random) if random.random() < 0.8 else marker)


def read_checkpoint(folder: Path) -> None:
    """A checkpoint that is taken for whole has files of the sizes that its list names."""
    chosen = checkpoint_to_resume(folder, "last")
    assert (chosen is not None) == is_whole_checkpoint(folder / "checkpoint-3")
    if chosen is None:
        raise InputError("not taken for whole: as good as refused")
    sizes = json.loads((Path(chosen) / MARKER).read_text(encoding="utf-8"))
    assert all((Path(chosen) / name).stat().st_size == size for name, size in sizes.items())


@dataclasses.dataclass
class Settings:
    """Arguments of a recipe."""

    train_data: str | None = None
    text_columns: list[str] | None = None
    learning_rate: float = 1e-4
    max_length: int = 128
    bf16: bool = False


SETTINGS = {"train_data": "a.csv", "text_columns": ["a", "b"], "learning_rate": 3e-5, "max_length": 64, "bf16": True}


def read_settings(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        (settings,) = parse_arguments([Settings], {}, [str(folder / name)])
        assert isinstance(settings, Settings)

    return read


TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "dog": 2, ".": 3}, unk_token="[UNK]"))
)
TOKENIZER.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def tokenized_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        documents = [["the dog .", "the the"], ["dog"], ["a . b", "the dog ."]]
        TokenizedDocuments.build(Path(folder) / "corpus", documents, TOKENIZER, show_progress=False)
        return {path.name: path.read_bytes() for path in (Path(folder) / "corpus").iterdir()}


TOKENIZED = tokenized_files()

TARGETS = {
    "cola": Target(damaged_file("a.tsv", COLA), read_cola, 1000),
    "csv": Target(damaged_file("a.csv", *delimited(",", doubled_quotes)), read_labeled, 1500),
    "tsv": Target(damaged_file("a.tsv", *delimited("\t", str)), read_labeled, 1000),
    "jsonl": Target(damaged_file("a.jsonl", *JSON_LINES), read_labeled, 1500),
    "json": Target(damaged_file("a.json", *JSON_LISTS), read_labeled, 500),
    "parquet": Target(write_parquet, read_labeled, 1000),
    "separated-labels": Target(write_any_table, read_separated, 500),
    "splits-of-a-table": Target(write_any_table, read_splits, 300),
    "class-folders": Target(write_class_folders, read_folders, 700),
    "newsgroups-folder": Target(write_newsgroups, read_newsgroups, 200),
    "newsgroups-archive": Target(write_newsgroups_archive, read_newsgroups, 500),
    "documents-by-blank-lines": Target(damaged_file("a.txt", DOCUMENTS), read_documents("a.txt", "blank_line"), 500),
    "documents-by-number": Target(damaged_file("a.txt", DOCUMENTS), read_documents("a.txt", "3"), 300),
    "documents-jsonl": Target(damaged_file("a.jsonl", *DOCUMENT_LINES), read_documents("a.jsonl"), 1000),
    "questions": Target(write_questions, read_questions, 400),
    "tagged-columns": Target(damaged_file("a.conll", *COLUMNS), read_tagged, 400),
    "tagged-lines": Target(damaged_file("a.jsonl", *TAGGED_LINES), read_tagged, 300),
    "tagged-list": Target(damaged_file("a.json", *TAGGED_LISTS), read_tagged, 200),
    "tokenized-corpus": Target(write_tokenized, read_tokenized, 500),
    "gradient-records": Target(
        damaged_npz(written(lambda p: save_records(p, gradient_records(), PARAMETERS))), read_records, 700
    ),
    "health-samples": Target(damaged_npz(written(three_samples)), read_samples, 500),
    "health-findings": Target(damaged_file("a.jsonl", written(one_finding)), read_findings, 500),
    "checkpoint": Target(write_checkpoint, read_checkpoint, 500),
    "settings-yaml": Target(damaged_file("a.yaml", yaml.safe_dump(SETTINGS).encode()), read_settings("a.yaml"), 400),
    "settings-json": Target(
        damaged_file("a.json", json.dumps(SETTINGS, indent=1).encode()), read_settings("a.json"), 400
    ),
}
