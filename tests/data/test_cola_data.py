"""The CoLA reader: what it accepts, what it refuses and in which words, and which rows go where."""

import csv
import gzip
from collections import Counter
from types import SimpleNamespace

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_toolkit.data import cola
from bert_toolkit.data.cola import LABEL_NAMES, load_cola, read_cola_file
from bert_toolkit.data.corpus_splits import split_off_validation
from bert_toolkit.errors import InputError

GOOD = b"gj04\t1\t\tThe ship sank.\nks08\t0\t*\tThe ship sinked.\n"


def write(folder, content: bytes = GOOD, name: str = "in_domain_train.tsv"):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def corpus(tmp_path):
    """A folder in the raw layout with 40 training rows, 4 in-domain and 2 out-of-domain dev rows."""
    train = "".join(f"a\t{number % 2}\t\tTraining sentence {number}.\n" for number in range(40))
    write(tmp_path, train.encode(), "in_domain_train.tsv")
    write(tmp_path, GOOD + b"x\t1\t\tIt rained.\ny\t0\t\tRained it.\n", "in_domain_dev.tsv")
    write(tmp_path, b"o\t1\t\tShe left.\no\t0\t*\tLeft she.", "out_of_domain_dev.tsv")
    return tmp_path


class TestReadColaFile:
    def test_reads_columns_in_order(self, tmp_path):
        rows = read_cola_file(write(tmp_path))
        assert rows.to_dict() == {
            "sentence": ["The ship sank.", "The ship sinked."],
            "label": [1, 0],
            "source": ["gj04", "ks08"],
        }
        assert rows.features["label"].names == LABEL_NAMES == ["unacceptable", "acceptable"]

    @pytest.mark.parametrize(
        "content",
        [
            GOOD.removesuffix(b"\n"),
            GOOD.replace(b"\n", b"\r\n"),
            b"\xef\xbb\xbf" + GOOD,
            GOOD.decode().encode("utf-16"),
            GOOD.replace(b"\n", b"\r"),
            gzip.compress(GOOD),
        ],
        ids=["no last newline", "Windows line ends", "byte order mark", "UTF-16", "old Mac line ends", "packed"],
    )
    def test_equal_content_in_other_dress(self, tmp_path, content):
        assert read_cola_file(write(tmp_path, content)).to_dict() == read_cola_file(write(tmp_path)).to_dict()

    def test_quotes_and_odd_line_separators_are_text(self, tmp_path):
        sentences = ['"Unbalanced, he said.', 'It\'s "fine"', "null", "a\u2028b\x0bc\x85d\re", "NA", " spaced "]
        lines = [f"s\t{number % 2}\t\t{sentence}" for number, sentence in enumerate(sentences)]
        assert read_cola_file(write(tmp_path, "\n".join(lines).encode()))["sentence"][:] == sentences

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "is empty"),
            (b"\n \n", "is empty"),
            (
                b"a\t1\t\tOne.\na\t0\tTwo.\n",
                ":2 has 3 tab-separated fields, expected 4: source, label, mark, sentence",
            ),
            (b"a\t1\t\tOne.\textra\n", ":1 has 5 tab-separated fields"),
            (b"a,1,,One.\n", ":1 has 1 tab-separated field, expected 4"),
            (b"a\t1\t\tOne.\n\na\t0\t\tTwo.\n", ":2 has 1 tab-separated field"),
            (b"a\t1\t\tOne.\n\n", ":2 has 1 tab-separated field"),
            (b"source\tlabel\tmark\tsentence\n", ":1 has label 'label', expected 0"),
            (b"a\t1\t\tOne.\na\t2\t\tTwo.\n", ":2 has label '2', expected 0 .unacceptable. or 1 .acceptable."),
            (b"a\t-1\t\tOne.\n", "has label '-1'"),
            (b"a\t1.0\t\tOne.\n", "has label '1.0'"),
            (b"a\t 1\t\tOne.\n", "has label ' 1'"),
            ("a\t\u0661\t\tOne.\n".encode(), "has label"),
            (b"a\t1\t\t\n", ":1 has an empty sentence"),
            (b"a\t1\t\t  \n", ":1 has an empty sentence"),
            (
                b"a\t1\t\tOne.\na\t0\t\tcaf\xe9\n",
                r":2 is not utf-8 \(byte 0xe9 at column 9, byte 18 of the file\): save it",
            ),
            (b"a\t1\t\tOne.\nb\t1\t\tTwo.\n", "holds only label 1: both acceptable"),
            (b"a\t0\t\tOne.\n", "holds only label 0"),
        ],
    )
    def test_refuses_in_one_line(self, tmp_path, content, message):
        with pytest.raises(InputError, match=message) as refusal:
            read_cola_file(write(tmp_path, content))
        assert "in_domain_train.tsv" in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_refuses_missing_file_and_folder(self, tmp_path):
        with pytest.raises(InputError, match="nowhere.tsv does not exist"):
            read_cola_file(tmp_path / "nowhere.tsv")
        with pytest.raises(InputError, match="cannot be read: Is a directory"):
            read_cola_file(tmp_path)

    # U+FEFF at the beginning of a line is the mark of a file that was joined to another, and no text
    characters = st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0\ufeff")
    text = st.text(characters, min_size=1, max_size=30)

    @settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.tuples(text, st.sampled_from("01"), text, text), max_size=8), st.booleans())
    def test_round_trip_of_any_text(self, tmp_path, rows, last_newline):
        """What Python's csv module reads without quoting is what the reader reads."""
        rows = [("s", "0", "*", "zero"), *(row for row in rows if row[3].strip()), ("s", "1", "", "one")]
        lines = ["\t".join(row) for row in rows]
        read = read_cola_file(write(tmp_path, ("\n".join(lines) + "\n" * last_newline).encode()))
        expected = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        assert list(zip(read["source"][:], read["label"][:], read["sentence"][:], strict=True)) == [
            (source, int(label), sentence) for source, label, _, sentence in expected
        ]

    @settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_mutated_files_are_read_or_refused_with_a_line_number(self, tmp_path, data):
        """Whatever bytes are changed: rows that obey the layout, or an InputError; never another exception."""
        content = bytearray(GOOD * 3)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            change = data.draw(st.sampled_from(["replace", "delete", "insert"]))
            if change == "delete" and len(content) > 1:
                del content[place]
            elif change == "insert":
                content.insert(place, data.draw(st.sampled_from(b'\t\n\r\0\xff\xc3"01 ')))
            else:
                content[place] = data.draw(st.integers(0, 255))
        path = write(tmp_path, bytes(content))
        lines = bytes(content).removesuffix(b"\n").split(b"\n")
        try:
            rows = read_cola_file(path)
        except InputError as refusal:
            message = str(refusal)
            assert "\n" not in message
            if "holds only label" not in message:
                number = int(message.removeprefix(f"{path}:").split(" ")[0])
                assert 1 <= number <= len(lines)
                if "fields" in message:
                    assert lines[number - 1].count(b"\t") != 3
        else:
            assert len(rows) == len(lines)
            assert all(line.count(b"\t") == 3 for line in lines)
            assert set(rows["label"][:]) == {0, 1}
            for line, sentence in zip(lines, rows["sentence"][:], strict=True):
                assert line.removesuffix(b"\r").endswith(b"\t" + sentence.encode())


class TestLoadCola:
    def test_folder_with_out_of_domain_rows(self, corpus):
        splits = load_cola(data_dir=corpus)
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 4, 2)
        assert splits.test["sentence"][:] == ["She left.", "Left she."]
        assert splits.remarks == []
        assert splits.text_column == "sentence"
        assert splits.description == f"CoLA in the raw layout from {corpus}"

    def test_folder_without_out_of_domain_rows_tests_on_dev_and_says_so(self, corpus):
        (corpus / "out_of_domain_dev.tsv").unlink()
        splits = load_cola(data_dir=str(corpus))
        assert splits.test.to_dict() == splits.validation.to_dict()
        assert len(splits.remarks) == 1 and "test rows are the dev rows" in splits.remarks[0]

    def test_validation_split_off_train(self, corpus):
        splits = load_cola(data_dir=corpus, validation_fraction=0.1, seed=1)
        assert len(splits.train) == 36
        assert Counter(splits.validation["label"][:]) == {0: 2, 1: 2}
        everything = splits.train["sentence"][:] + splits.validation["sentence"][:]
        assert sorted(everything) == sorted(load_cola(data_dir=corpus).train["sentence"][:])
        assert splits.test["sentence"][:] == ["She left.", "Left she."]
        assert splits.remarks == [
            "Validated on 4 of the training rows (seed 1), tested on the out-of-domain dev rows; in-domain dev is not "
            "used."
        ]
        (corpus / "out_of_domain_dev.tsv").unlink()
        splits = load_cola(data_dir=corpus, validation_fraction=0.1)
        assert len(splits.test) == 4
        assert splits.remarks == ["Validated on 4 of the training rows (seed 42), tested on the in-domain dev rows."]

    def test_auto_without_hub_takes_the_sample_and_says_so(self):
        splits = load_cola()
        assert splits.description.startswith("the bundled sample (the hub https")
        assert splits.remarks[0].startswith("These are not CoLA scores")
        asked = load_cola("sample")
        assert asked.description == "the bundled sample (asked for)"
        assert asked.train.to_dict() == splits.train.to_dict()

    def test_hub_asked_for_but_not_reachable(self):
        with pytest.raises(InputError, match="hub was asked for but https://huggingface.co does not answer"):
            load_cola("hub")

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"source": "web"}, "`dataset` must be auto, hub or sample, got web"),
            ({"source": "sample", "data_dir": "x"}, "`data_dir` and `dataset sample` contradict one another"),
            ({"data_dir": "no/such/folder"}, "`data_dir` must be a folder with in_domain_train.tsv and in_domain_dev"),
            ({"source": "sample", "validation_fraction": 1.0}, r"`validation_fraction` must lie in \(0, 1\), got 1.0"),
            ({"source": "sample", "validation_fraction": -0.1}, "`validation_fraction` must lie"),
            ({"source": "sample", "validation_fraction": 0.9999}, "leaves no training row of class 0"),
        ],
    )
    def test_refuses_arguments(self, arguments, message):
        with pytest.raises(InputError, match=message):
            load_cola(**arguments)

    def test_folder_without_the_files(self, corpus, tmp_path):
        (corpus / "in_domain_dev.tsv").unlink()
        with pytest.raises(InputError, match="holds no in_domain_dev.tsv: pass the `raw` folder"):
            load_cola(data_dir=corpus)
        inner = tmp_path / "cola_public" / "raw"
        inner.mkdir(parents=True)
        (corpus / "in_domain_train.tsv").rename(inner / "in_domain_train.tsv")
        with pytest.raises(InputError, match=r"no in_domain_train.tsv and no in_domain_dev.tsv; did you mean .*raw\?"):
            load_cola(data_dir=tmp_path)

    def test_broken_file_in_any_role_is_refused(self, corpus):
        write(corpus, b"a\t1\tOne.\n", "out_of_domain_dev.tsv")
        with pytest.raises(InputError, match="out_of_domain_dev.tsv:1 has 3 tab-separated fields"):
            load_cola(data_dir=corpus)


class TestHub:
    """The hub itself is replaced by what `load_dataset` would return."""

    @pytest.fixture
    def glue(self, monkeypatch):
        hub = SimpleNamespace(requested=None, in_domain_end="Anson became a muscle bound.", rows=1043)

        def load_dataset(*arguments):
            hub.requested = arguments
            dev = [f"Dev sentence {number}." for number in range(hub.rows)]
            if hub.rows > 526:
                dev[526] = hub.in_domain_end
            columns = {
                "train": ["One.", "Two."],
                "validation": dev,
                "test": ["Hidden."],
            }
            return {
                name: datasets.Dataset.from_dict({"sentence": s, "label": [i % 2 for i in range(len(s))], "idx": s})
                for name, s in columns.items()
            }

        monkeypatch.setattr(cola, "hub_answers", lambda: True)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return hub

    @pytest.mark.parametrize("source", ["auto", "hub"])
    def test_dev_rows_are_divided_where_the_border_is_known(self, glue, source):
        splits = load_cola(source)
        assert glue.requested == ("nyu-mll/glue", "cola")
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 527, 516)
        assert splits.validation["sentence"][526] == "Anson became a muscle bound."
        assert splits.train.column_names == ["sentence", "label", "source"]
        assert splits.description == "CoLA from the hub (nyu-mll/glue, cola)"
        assert splits.remarks == []

    @pytest.mark.parametrize("change", [{"in_domain_end": "Something else."}, {"rows": 900}], ids=str)
    def test_dev_rows_stay_joined_where_it_is_not(self, glue, change):
        vars(glue).update(change)
        splits = load_cola("hub")
        assert len(splits.validation) == len(splits.test) == glue.rows
        assert "GLUE joins" in splits.remarks[0] and "optimistic" in splits.remarks[1]

    def test_failure_after_the_answer_is_an_error_not_the_sample(self, monkeypatch):
        def fail(*arguments):
            raise ConnectionError("Couldn't reach the hub\nmany\nlines")

        monkeypatch.setattr(cola, "hub_answers", lambda: True)
        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(
            InputError, match="the hub answered, but .* Couldn't reach the hub; pass `data_dir`"
        ) as error:
            load_cola("auto")
        assert "\n" not in str(error.value)


class TestSplitOffValidation:
    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(st.tuples(st.text(max_size=5), st.integers(0, 3)), min_size=1, max_size=60),
        st.floats(0.05, 0.6),
        st.integers(0, 10),
    )
    def test_is_a_stratified_partition(self, rows, fraction, seed):
        texts, labels = [text for text, _ in rows] * 4, [label for _, label in rows] * 4
        train, validation = split_off_validation(texts, labels, fraction, seed)
        assert sorted(train + validation) == list(range(len(labels)))
        assert train == sorted(train) and validation == sorted(validation)
        for label, count in Counter(labels).items():
            held_out = sum(labels[row] == label for row in validation)
            assert 1 <= held_out < count
            assert abs(held_out - count * fraction) <= 1

    def test_depends_on_seed_and_not_on_row_order(self):
        texts = [f"text {number}" for number in range(200)]
        labels = [number % 3 for number in range(200)]
        first = split_off_validation(texts, labels, 0.2, 0)[1]
        assert first == split_off_validation(texts, labels, 0.2, 0)[1]
        assert first != split_off_validation(texts, labels, 0.2, 1)[1]
        backwards = split_off_validation(texts[::-1], labels[::-1], 0.2, 0)[1]
        assert sorted(199 - row for row in backwards) == first

    def test_refuses_a_class_that_cannot_be_in_both(self):
        with pytest.raises(InputError, match="leaves no training row of class 1, which has 1 rows"):
            split_off_validation(["a", "b", "c"], [0, 0, 1], 0.5, 0)
