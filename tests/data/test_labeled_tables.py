"""Anybody's labeled text: columns guessed and said, splits stratified, and one line for what does not fit."""

import json
import unicodedata
from collections import Counter

import datasets
import pandas
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from bert_toolkit.data import hub_tables
from bert_toolkit.data.labeled_tables import choose_columns, load_labeled_tables
from bert_toolkit.data.tables import Table
from bert_toolkit.errors import InputError


def csv_file(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def numbered(count, labels):
    return [f"text {i},{labels[i % len(labels)]}" for i in range(count)]


class TestColumns:
    @pytest.mark.parametrize(
        ("names", "text", "label"),
        [
            (["text", "label"], ("text",), ("label",)),
            (["id", "Sentence", "Label"], ("Sentence",), ("Label",)),
            (["label", "premise", "hypothesis", "idx"], ("premise", "hypothesis"), ("label",)),
            (["sentence1", "sentence2", "score"], ("sentence1", "sentence2"), ("score",)),
            (["title", "text", "stars"], ("text",), ("stars",)),
            (["utterance", "y"], ("utterance",), ("y",)),
            (["headline", "category", "id"], ("headline",), ("category",)),
            (["column 1", "text", "label"], ("text",), ("label",)),
        ],
    )
    def test_guessed(self, names, text, label):
        columns = choose_columns(Table({name: ["a"] for name in names}, str))
        assert (columns.text, columns.label) == (text, label)
        assert "(text and label guessed from the names)" in columns.description
        assert "\n" not in columns.description

    def test_named(self):
        rows = Table({name: ["a"] for name in ("text", "label", "a", "b", "c")}, str)
        columns = choose_columns(rows, ["a", "b"], ["c"])
        assert columns == (("a", "b"), ("c",), "text: 'a', 'b', label: 'c', unused: 'text', 'label'")
        assert choose_columns(rows, ["a"]).label == ("label",)
        assert "(label guessed from the names)" in choose_columns(rows, ["a"]).description

    @pytest.mark.parametrize(
        ("names", "options", "message"),
        [
            (["a", "b"], {}, "cannot tell which column of row 0 is the text: pass `text_columns`; there are 'a', 'b'"),
            (["text", "a", "b"], {}, "cannot tell which column of row 0 is the label"),
            (["text"], {}, "is the label"),
            (["a", "b", "label"], {}, "is the text"),
            (["text", "label"], {"text_columns": ["txt"]}, "no column 'txt': there are 'text', 'label'"),
            (["text", "label"], {"text_columns": ["text", "text"]}, "name one or two columns"),
            (["text", "label"], {"text_columns": ["text"], "label_columns": ["text"]}, "name one or two columns"),
            (["a", "b", "c", "label"], {"text_columns": ["a", "b", "c"]}, "name one or two columns"),
        ],
    )
    def test_refused(self, names, options, message):
        rows = Table({name: ["x"] for name in names}, lambda row: f"row {row}")
        with pytest.raises(InputError, match=message):
            choose_columns(rows, **options)


class TestSplits:
    def test_stratified_by_class_and_independent_of_the_order_of_rows(self, tmp_path):
        rows = numbered(200, ["a", "a", "a", "b"])
        corpus, _ = load_labeled_tables(csv_file(tmp_path / "a.csv", rows), test_fraction=0.2)
        assert Counter(corpus.test["label"][:]) == {0: 30, 1: 10}
        assert Counter(corpus.validation["label"][:]) == {0: 15, 1: 5}
        assert Counter(corpus.train["label"][:]) == {0: 105, 1: 35}
        texts = [set(split["text"][:]) for split in (corpus.train, corpus.validation, corpus.test)]
        assert len(set.union(*texts)) == 200 == sum(map(len, texts))
        turned, _ = load_labeled_tables(csv_file(tmp_path / "b.csv", rows[::-1]), test_fraction=0.2)
        assert set(turned.validation["text"][:]) == texts[1]
        other, _ = load_labeled_tables(csv_file(tmp_path / "b.csv", rows), test_fraction=0.2, seed=1)
        assert set(other.validation["text"][:]) != texts[1]
        assert any("40 of the training rows, stratified (seed 42)" in remark for remark in corpus.remarks)

    def test_class_with_one_row_stays_in_training(self, tmp_path):
        corpus, _ = load_labeled_tables(csv_file(tmp_path / "a.csv", [*numbered(20, ["a", "b"]), "alone,c"]))
        assert "alone" in corpus.train["text"][:]
        assert any("none of the classes with one row: 'c'" in remark for remark in corpus.remarks)

    def test_numbers_are_divided_over_their_range(self, tmp_path):
        corpus, _ = load_labeled_tables(csv_file(tmp_path / "a.csv", [f"text {i},{i + 0.5}" for i in range(100)]))
        assert corpus.problem_type == "regression"
        assert sorted(int(label) // 10 for label in corpus.validation["label"][:]) == list(range(10))

    def test_rarest_labels_are_divided(self, tmp_path):
        rows = [json.dumps({"text": f"text {i}", "labels": ["common"] + ["rare"] * (i % 10 == 0)}) for i in range(100)]
        (tmp_path / "a.jsonl").write_text("\n".join(rows))
        corpus, _ = load_labeled_tables(tmp_path / "a.jsonl", validation_fraction=0.2)
        assert (corpus.problem_type, corpus.label_names) == ("multi_label_classification", ["common", "rare"])
        assert sum(rare for _, rare in corpus.validation["label"][:]) == 2

    def test_given_files(self, tmp_path):
        train = csv_file(tmp_path / "train.csv", numbered(10, "ab"))
        dev = csv_file(tmp_path / "dev.csv", ["dev,b"])
        test = csv_file(tmp_path / "test.csv", ["test,a"])
        corpus, _ = load_labeled_tables(train, dev, test)
        assert (len(corpus.train), corpus.validation["text"][:], corpus.test["text"][:]) == (10, ["dev"], ["test"])
        assert corpus.remarks == []
        assert corpus.test[0] == {"text": "test", "label": 0, "place": f"{test}:2"}
        assert str(dev) in corpus.description and "2 classes" in corpus.description

    def test_validation_rows_are_tested_where_there_are_no_others_and_it_is_said(self, tmp_path):
        corpus, _ = load_labeled_tables(csv_file(tmp_path / "a.csv", numbered(20, "ab")))
        assert corpus.test is corpus.validation
        assert "optimistic" in corpus.remarks[-1]

    def test_folders_with_splits(self, tmp_path):
        for i in range(20):
            for name in (f"train/{'ab'[i % 2]}/{i}", f"test/{'ab'[i % 2]}/{i}"):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(name)
        corpus, _ = load_labeled_tables(tmp_path)
        assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (18, 2, 20)
        assert corpus.description == f"{tmp_path}; 2 classes"
        (tmp_path / "train" / "c.txt").write_text("of no class")
        corpus, _ = load_labeled_tables(tmp_path / "train")
        assert "train, left out: 1 files beside the folders of classes; 2 classes" in corpus.description
        with pytest.raises(InputError, match="`test_data` .* is one test split too many"):
            load_labeled_tables(tmp_path, test_data=tmp_path / "test")
        with pytest.raises(InputError, match="the data have test rows of their own"):
            load_labeled_tables(tmp_path, test_fraction=0.1)
        with pytest.raises(InputError, match="split too many"):
            load_labeled_tables(tmp_path / "train", validation_data=tmp_path)

    @pytest.mark.parametrize(
        ("rows", "options", "message"),
        [
            (["one,a", "two,b"], {}, "2 rows are too few to split off `validation_fraction`: pass `validation_data`"),
            (numbered(20, "ab"), {"validation_fraction": 0}, "there are no validation rows"),
            (numbered(20, "ab"), {"validation_fraction": 1.5}, r"`validation_fraction` must lie in \[0, 1\), got 1.5"),
            (numbered(20, "ab"), {"test_fraction": -0.1}, r"`test_fraction` must lie in \[0, 1\), got -0.1"),
            (numbered(20, "ab"), {"test_fraction": 0.5, "validation_fraction": 0.5}, "too few|leaves no training row"),
            (numbered(20, "a"), {}, "only the label 'a'"),
            (["one,a", ",b"], {}, "a.csv:3 has nothing in column 'text'"),
            (["one,a", "two"], {}, "a.csv:3 has 1 field, expected 2"),
        ],
    )
    def test_refused(self, tmp_path, rows, options, message):
        with pytest.raises(InputError, match=message):
            load_labeled_tables(csv_file(tmp_path / "a.csv", rows), **options)

    def test_unknown_label_in_the_validation_file(self, tmp_path):
        train = csv_file(tmp_path / "train.csv", numbered(10, "ab"))
        dev = csv_file(tmp_path / "dev.csv", ["one,a", "two,c"])
        with pytest.raises(InputError, match="dev.csv:3 has label 'c', which no training row has; known are 'a', 'b'"):
            load_labeled_tables(train, dev)

    def test_validation_file_without_the_columns(self, tmp_path):
        train = csv_file(tmp_path / "train.csv", numbered(10, "ab"))
        dev = csv_file(tmp_path / "dev.csv", ["one,a"], header="txt,label")
        with pytest.raises(InputError, match="dev.csv:2 has no column 'text': there are 'txt', 'label'"):
            load_labeled_tables(train, dev)

    def test_badly_scaled_numbers_are_remarked_on(self, tmp_path):
        corpus, _ = load_labeled_tables(
            csv_file(tmp_path / "a.csv", [f"text {i},{1000 * i + 0.5}" for i in range(30)])
        )
        assert "standard deviation 8655" in corpus.remarks[0]

    def test_class_without_training_rows_is_remarked_on(self, tmp_path):
        rows = ["text,a,b", *(f"text {i},{i % 2},0" for i in range(20))]
        (tmp_path / "a.csv").write_text("\n".join(rows))
        corpus, _ = load_labeled_tables(tmp_path / "a.csv", label_columns=["a", "b"])
        assert corpus.remarks[0] == "No training row has the label 'b'."


def test_pairs_have_two_columns(tmp_path):
    rows = [f"first {i}\tsecond {i}\t{i % 2}" for i in range(20)]
    (tmp_path / "a.tsv").write_text("\n".join(["premise\thypothesis\tlabel", *rows]))
    corpus, columns = load_labeled_tables(tmp_path / "a.tsv")
    assert (corpus.text_column, corpus.second_text_column) == ("text", "text_pair")
    assert columns.text == ("premise", "hypothesis")
    row = corpus.train[0]
    assert row["text"].split()[1] == row["text_pair"].split()[1]


class TestLabelsOfFiles:
    """One meaning, whatever writes the file."""

    MARKS = [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]] * 5

    def loaded(self, path, **options):
        corpus, _ = load_labeled_tables(path, **options)
        rows = zip(corpus.train["text"], corpus.train["label"], strict=True)
        return corpus, {int(text.split()[1]): label for text, label in rows}

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
    @pytest.mark.parametrize("kind", [int, float, bool, str])
    def test_zero_or_one_for_each_class(self, tmp_path, name, kind):
        rows = [{"text": f"text {i}", "labels": list(map(kind, row))} for i, row in enumerate(self.MARKS)]
        (tmp_path / name).write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
        corpus, labels = self.loaded(tmp_path / name)
        assert (corpus.problem_type, corpus.label_names) == ("multi_label_classification", ["0", "1", "2"])
        assert labels == {i: self.MARKS[i] for i in labels}

    def test_as_pandas_writes_lists_into_csv(self, tmp_path):
        frame = pandas.DataFrame({"text": [f"text {i}" for i in range(20)], "labels": self.MARKS})
        frame.to_csv(tmp_path / "a.csv", index=False)
        with pytest.raises(
            InputError, match=r"a.csv:2 has '\[0, 1, 0\]' in column 'labels', several values as one text"
        ):
            load_labeled_tables(tmp_path / "a.csv")

    def test_numbers_and_truth_values_of_several_writers(self, tmp_path):
        """pandas makes floats of whole numbers beside an empty cell; spreadsheets write truth values in capitals."""
        train = csv_file(tmp_path / "train.csv", numbered(20, ["1.0", "0.0"]))
        dev = tmp_path / "dev.jsonl"
        dev.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}')
        corpus, _ = load_labeled_tables(train, dev)
        assert (corpus.label_names, corpus.validation["label"][:]) == (["0", "1"], [1, 0])
        corpus, _ = load_labeled_tables(csv_file(tmp_path / "a.csv", numbered(20, ["TRUE", "FALSE", "True"])))
        assert corpus.remarks[0] == "Classes that look alike may be one: 'TRUE', 'True'."

    def test_folders_named_by_two_systems(self, tmp_path):
        for name in ("cafe\u0301", "caf\u00e9", "the"):
            (tmp_path / "data" / name).mkdir(parents=True)
            for i in range(5):
                (tmp_path / "data" / name / str(i)).write_text(f"text {i}")
        corpus, labels = self.loaded(tmp_path / "data")
        assert corpus.label_names == ["caf\u00e9", "the"]
        assert "taken for one class: 'cafe\\u0301', 'caf\\xe9' as 'café'" in corpus.remarks[0]

    def test_names_of_columns_in_either_form(self, tmp_path):
        csv_file(tmp_path / "a.csv", numbered(20, "ab"), header="re\u0301ponse,the\u0301me")
        for form in ("NFC", "NFD"):
            names = [unicodedata.normalize(form, name) for name in ("réponse", "théme")]
            corpus, columns = load_labeled_tables(tmp_path / "a.csv", text_columns=names[:1], label_columns=names[1:])
            assert (corpus.label_names, columns.text) == (["a", "b"], ("r\u00e9ponse",))


class TestHub:
    """The hub itself is replaced by what `load_dataset` would return."""

    @pytest.fixture
    def hub(self, monkeypatch):
        features = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
        train = {"sentence": [f"text {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
        splits = {
            "train": Dataset.from_dict(train, features=features),
            "validation": Dataset.from_dict({"sentence": ["a"], "label": [1]}, features=features),
            "test": Dataset.from_dict({"sentence": ["b"], "label": [-1]}, features=features),
            "extra": Dataset.from_dict({"sentence": ["c"], "label": [0]}, features=features),
        }
        monkeypatch.setattr(hub_tables, "hub_answers", lambda: True)
        monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None: DatasetDict(splits))
        return splits

    def test_names_of_classes_and_withheld_test_labels(self, hub):
        corpus, columns = load_labeled_tables(hub_dataset="owner/name", hub_config="part")
        assert corpus.label_names == ["no", "yes"]
        assert (corpus.validation["text"][:], corpus.validation["label"][:]) == (["a"], [1])
        assert corpus.test is corpus.validation
        assert any("withheld" in remark for remark in corpus.remarks)
        assert corpus.description.startswith("owner/name (part) from the hub")
        assert columns.text == ("sentence",)

    def test_several_labels_at_once(self, hub):
        features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["x", "y"]))})
        rows = {"text": [f"text {i}" for i in range(20)], "labels": [[0], [0, 1]] * 10}
        hub["train"] = Dataset.from_dict(rows, features=features)
        del hub["validation"], hub["test"]
        corpus, _ = load_labeled_tables(hub_dataset="owner/name")
        assert corpus.label_names == ["x", "y"]
        assert sorted(map(tuple, corpus.validation["label"][:])) == [(1.0, 0.0), (1.0, 1.0)]

    def test_rows_without_a_label_are_left_out_and_counted(self, hub):
        """As SNLI numbers the rows on which its annotators did not agree."""
        features = hub["train"].features
        rows = {"sentence": [f"text {i}" for i in range(20)], "label": [-1, 0, 1, 0] * 5}
        hub["train"] = Dataset.from_dict(rows, features=features)
        hub["test"] = Dataset.from_dict({"sentence": ["b", "c"], "label": [-1, 1]}, features=features)
        corpus, _ = load_labeled_tables(hub_dataset="owner/name")
        assert corpus.train["text"][:] == [f"text {i}" for i in range(20) if i % 4]
        assert (corpus.test["text"][:], corpus.test["place"][:]) == (["c"], ["owner/name test (row 2)"])
        assert corpus.remarks == [
            "5 train rows have the label -1, which is none: they are left out.",
            "1 test rows have the label -1, which is none: they are left out.",
        ]

    def test_splits_that_are_left_out_are_named(self, hub):
        hub["validation_mismatched"] = hub["validation"]
        corpus, _ = load_labeled_tables(hub_dataset="owner/name")
        assert "from the hub, left out: 'extra', 'validation_mismatched';" in corpus.description

    @pytest.mark.parametrize(
        ("feature", "names"),
        [
            (List(Value("float32")), ["0", "1", "2"]),
            (List(Value("bool"), length=3), ["0", "1", "2"]),
            (List(Value("int8")), ["0", "1", "2"]),
            (List(ClassLabel(names=["x", "y", "z"])), ["x", "y", "z"]),
            (List(ClassLabel(names=["no", "yes"])), ["0", "1", "2"]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("source", ["hub", "parquet"])
    def test_zero_or_one_for_each_class(self, hub, tmp_path, feature, names, source):
        marks = [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]] * 5
        rows = {"text": [f"text {i}" for i in range(20)], "labels": marks}
        hub["train"] = Dataset.from_dict(rows, features=Features({"text": Value("string"), "labels": feature}))
        del hub["validation"], hub["test"]
        hub["train"].to_parquet(tmp_path / "a.parquet")
        given = {"hub_dataset": "owner/name"} if source == "hub" else {"train_data": tmp_path / "a.parquet"}
        corpus, _ = load_labeled_tables(**given)
        assert corpus.label_names == names
        expected = dict(zip(rows["text"], marks, strict=True))
        for split in (corpus.train, corpus.validation):
            assert split["label"][:] == [expected[text] for text in split["text"]]

    def test_no_training_split(self, hub):
        del hub["train"]
        with pytest.raises(InputError, match="`hub_dataset` owner/name has no split named train: it has 'validation'"):
            load_labeled_tables(hub_dataset="owner/name")

    def test_failure_of_the_library_is_one_line(self, hub, monkeypatch):
        def fail(*dataset):
            raise ConnectionError("no such dataset\nand\nmuch more")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(InputError, match="^`hub_dataset` owner/name could not be loaded: no such dataset$"):
            load_labeled_tables(hub_dataset="owner/name")

    def test_no_hub(self):
        with pytest.raises(InputError, match="`hub_dataset` owner/name was asked for but the hub .* does not answer"):
            load_labeled_tables(hub_dataset="owner/name")

    def test_one_source(self, tmp_path):
        with pytest.raises(InputError, match="pass `train_data` .* or `hub_dataset`, one of the two"):
            load_labeled_tables()
        with pytest.raises(InputError, match="one of the two"):
            load_labeled_tables(tmp_path, hub_dataset="owner/name")
