"""The newsgroups recipe as people run it: through `accelerate launch`, on posts in the by-date layout."""

import csv
import json
import runpy
import tarfile
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification

from bert_toolkit.monitoring.record_file import load_records
from bert_toolkit.monitoring.update_ratios import UpdateRatioRecord

RECIPE = Path(__file__).parents[2] / "recipes" / "newsgroups.py"
newsgroups_main = runpy.run_path(str(RECIPE))["main"]
GROUPS = ["alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc"]
WORDS = ["the dog sleeps", "a cat runs", "my friend laughs", "every old child sings"]

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def posts_dir(tmp_path_factory):
    """Posts whose words tell their group; one byte in each is latin-1 and not UTF-8."""
    folder = tmp_path_factory.mktemp("posts")
    for split, count in (("train", 20), ("test", 7)):
        for group, words in zip(GROUPS, WORDS, strict=True):
            place = folder / f"20news-bydate-{split}" / group
            place.mkdir(parents=True)
            for number in range(count):
                body = f"{words} . " * (3 + number % 3)
                text = f"From: someone@example.org\nSubject: number {number}\n\n{body}caf\xe9\n"
                (place / str(1000 + number)).write_bytes(text.encode("latin-1"))
    return folder


def flags(posts_dir, tiny_bert_dir, output_dir, **changes):
    return {
        "data_dir": posts_dir,
        "model_name_or_path": tiny_bert_dir,
        "output_dir": output_dir,
        "num_train_epochs": 30,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_length": 40,
        "eval_steps": 20,
        "save_steps": 20,
        "cpu_threads": 1,
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launch, posts_dir, tiny_bert_dir):
    output_dir = tmp_path_factory.mktemp("run") / "newsgroups"
    process = launch("newsgroups", flags(posts_dir, tiny_bert_dir, output_dir, warmup_steps=0.5))
    assert process.returncode == 0, process.stderr[-3000:]
    return output_dir, process.stdout


def test_groups_are_learned_and_scores_are_those_of_scikit_learn(finished, posts_dir):
    output_dir, printed = finished
    results = json.loads((output_dir / "results.json").read_text())
    with (output_dir / "predictions.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 28
    assert results["accuracy"] == pytest.approx(
        accuracy_score([r["label"] for r in rows], [r["prediction"] for r in rows])
    )
    assert results["accuracy"] > 0.9
    for row in rows:  # "post" tells the file, whose folder is the group
        assert row["label"] in row["post"]
    assert "Saved and reloaded with identical predictions" in printed
    model = AutoModelForSequenceClassification.from_pretrained(output_dir)
    assert [model.config.id2label[i] for i in range(4)] == GROUPS


def test_warm_up_share_reaches_the_schedule(finished):
    """Half of the steps warm up, so the highest learning rate stands at half of them."""
    output_dir, _ = finished
    log = json.loads((output_dir / "results.json").read_text())["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    peak, last = max(rates, key=rates.get), max(rates)
    assert abs(peak - last / 2) <= 10


def test_monitoring_is_in_tensorboard_in_files_and_in_the_log(finished):
    output_dir, _ = finished
    tags = {"scalars": set(), "images": set()}
    for folder in {path.parent for path in (output_dir / "runs").rglob("events*")}:
        found = EventAccumulator(str(folder)).Reload().Tags()
        tags = {kind: tags[kind] | set(found[kind]) for kind in tags}
    assert {"gradient_flow/mean/layer.1", "update_ratio/layer.0", "eval/accuracy"} <= tags["scalars"]
    assert {"monitoring/gradients", "monitoring/update_ratios", "confusion_matrix"} <= tags["images"]
    for name in ("gradients", "gradients_over_time", "update_ratios", "update_ratios_over_time"):
        assert (output_dir / "monitoring" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    records = load_records(output_dir / "monitoring" / "update_ratio.npz", UpdateRatioRecord)
    assert [record.step for record in records[:5]] == [1, 2, 5, 10, 20]
    log = json.loads((output_dir / "results.json").read_text())["log_history"]
    # the first step of a warm-up has a rate of 0
    assert [e["step"] for e in log if "update_ratio/layer.0" in e][:3] == [2, 5, 10]


def test_reads_the_archive_and_removes_parts(finished, posts_dir, tiny_bert_dir, tmp_path, launch):
    archive = tmp_path / "20news-bydate.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for folder in sorted(posts_dir.iterdir()):
            tar.add(folder, folder.name)
    few = {"max_steps": 3, "monitor_every": 0, "training_health": False, "categories": "all"}
    settings = flags(archive, tiny_bert_dir, tmp_path / "run", **few)
    process = launch("newsgroups", settings)
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "20news-bydate.tar.gz" in results["data"]
    assert list(results["classes"]) == GROUPS
    assert not (tmp_path / "run" / "monitoring").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": "no.such.group"}, "no.such.group"),
        ({"remove": "signatures"}, "signatures"),
        ({"data_dir": "nowhere.tar.gz"}, "nowhere.tar.gz"),
        ({"max_length": 65}, "`max_length` must lie in 5 to 64"),
        ({"warmup": 0.1}, "unknown argument `--warmup`"),
    ],
)
def test_bad_input_is_one_line(change, words, posts_dir, tiny_bert_dir, tmp_path, monkeypatch):
    from bert_toolkit import InputError

    arguments = flags(posts_dir, tiny_bert_dir, tmp_path / "run", **change)
    command = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["newsgroups.py", *command])
    with pytest.raises(InputError) as refused:
        newsgroups_main()
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "results.json").exists()
