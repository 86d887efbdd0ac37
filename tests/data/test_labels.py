"""What labels mean, and which of them are refused."""

import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from bert_toolkit.data.labels import MULTI, REGRESSION, SINGLE, learn_labels
from bert_toolkit.data.tables import Table
from bert_toolkit.errors import InputError


def table(class_names=None, **columns):
    return Table(columns, lambda row: f"rows.csv:{row + 2}", class_names or {})


@pytest.mark.parametrize(
    ("values", "problem_type", "names", "encoded"),
    [
        (["b", "a", " b ", "b"], SINGLE, ["a", "b"], [1, 0, 1, 1]),
        (["10", "9", "10", "-1"], SINGLE, ["-1", "9", "10"], [2, 1, 2, 0]),
        ([10, 9, 10, 1], SINGLE, ["1", "9", "10"], [2, 1, 2, 0]),
        ([1.0, 0.0, 1.0, 2], SINGLE, ["0", "1", "2"], [1, 0, 1, 2]),
        ([True, False, True, True], SINGLE, ["False", "True"], [1, 0, 1, 1]),
        (["New  York", "a", "New York", "a"], SINGLE, ["New York", "a"], [0, 1, 0, 1]),
        (["0.5", "1", "2", "1e-3"], REGRESSION, ["label"], [0.5, 1.0, 2.0, 0.001]),
        ([0.5, 1, 2, 3], REGRESSION, ["label"], [0.5, 1.0, 2.0, 3.0]),
        ([["x"], [], ["y", "x"], ["y"]], MULTI, ["x", "y"], [[1, 0], [0, 0], [1, 1], [0, 1]]),
        ([[2], [1], [10], []], MULTI, ["1", "2", "10"], [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]),
        (["1.5 litres", "2", "2", "1.5 litres"], SINGLE, ["1.5 litres", "2"], [0, 1, 1, 0]),
    ],
)
def test_meaning_is_found(values, problem_type, names, encoded):
    scheme = learn_labels(table(label=values), ["label"])
    assert (scheme.problem_type, scheme.names) == (problem_type, names)
    assert scheme.encode(table(label=values)) == encoded


def test_separated_labels_equal_those_of_scikit_learn():
    cells = ["a, b", "b", "", "c ,a", "a,,b"]
    scheme = learn_labels(table(label=cells), ["label"], separator=",")
    binarizer = MultiLabelBinarizer()
    expected = binarizer.fit_transform([[part.strip() for part in cell.split(",") if part.strip()] for cell in cells])
    assert scheme.names == list(binarizer.classes_)
    assert scheme.encode(table(label=cells)) == expected.tolist()


def test_columns_of_zero_and_one():
    rows = table(toxic=["0", "1", "1.0"], insult=[True, False, 1])
    scheme = learn_labels(rows, ["toxic", "insult"])
    assert (scheme.problem_type, scheme.names) == (MULTI, ["toxic", "insult"])
    assert scheme.encode(rows) == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(InputError, match=r"rows.csv:3 has '2' in column 'toxic', expected 0 or 1"):
        scheme.encode(table(toxic=["0", "2"], insult=[0, 1]))


def test_numbers_that_stand_for_names_keep_the_order_of_the_file():
    rows = table({"label": ["neutral", "good", "bad"]}, label=[1, 2, 1])
    scheme = learn_labels(rows, ["label"])
    assert scheme.names == ["neutral", "good", "bad"]
    assert scheme.encode(rows) == [1, 2, 1]
    for number, reason in ((-1, "-1 marks withheld labels"), (3, "expected 0 to 2")):
        with pytest.raises(InputError, match=f"rows.csv:3 has label {number}: {reason}"):
            scheme.encode(table(label=[1, number]))


def test_problem_type_can_be_forced():
    rows = table(label=["1", "2", "3", "1"])
    assert learn_labels(rows, ["label"]).problem_type == SINGLE
    assert learn_labels(rows, ["label"], REGRESSION).encode(rows) == [1.0, 2.0, 3.0, 1.0]
    halves = table(label=["0.5", "1.5", "0.5"])
    assert learn_labels(halves, ["label"], SINGLE).names == ["0.5", "1.5"]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a"] * 4, {}, "only the label 'a' in column 'label': at least two classes"),
        (["a", "", "b", " "], {}, r"rows.csv:3 has nothing in column 'label' \(nor have 1 later rows\)"),
        (["a", None, "b", "a"], {}, "rows.csv:3 has nothing in column 'label'"),
        (["a", 3, "b", "a"], {}, "rows.csv:3 has a number as a label in 'label' and rows.csv:2 has a string"),
        ([1, True, 0, 1], {}, "rows.csv:3 has a truth value"),
        ([{"a": 1}] * 2, {}, "rows.csv:2 has an object as a label"),
        ([["a"], "b"], {}, "rows.csv:3 has a string in column 'label', expected a list of labels"),
        ([["a"], ["b", None]], {}, "rows.csv:3 has nothing as a label"),
        ([["a"], [["b"]]], {}, "rows.csv:3 has a list as a label"),
        ([["a"], ["b", 1]], {}, "rows.csv:3 has a number as a label in 'label' and rows.csv:2 has a string"),
        ([["a"], [""]], {}, "rows.csv:3 has nothing"),
        ([[], []], {}, "no label at all"),
        ([float("nan"), 1.0, 2.0], {"problem_type": SINGLE}, "rows.csv:2 has nan as a label"),
        (["0.5", "nan", "1.5", "2"], {}, "rows.csv:3 has 'nan' in column 'label', expected a finite number"),
        (["0.5", "", "1.5", "2"], {}, "rows.csv:3 has '' in column 'label'"),
        ([0.5, float("nan"), 2.0], {}, "rows.csv:3 has nan in column"),
        ([0.5, float("inf"), 2.0], {}, "rows.csv:3 has inf in column"),
        (["0.5", "1e39", "2"], {}, "rows.csv:3 has '1e39' in column 'label', expected a finite number"),
        (["0.5", "1\x1f", "2", "3\x1f2"], {}, r"rows.csv:5 has '3\\x1f2'"),
        (["0.5", "1_0", "2"], {}, "rows.csv:3 has '1_0'"),
        (["2.5"] * 3, {}, "all 3 rows have the same number"),
        (["a", "b"], {"problem_type": REGRESSION}, "rows.csv:2 has 'a' in column 'label', expected a finite number"),
        ([f"id {i}" for i in range(30)], {}, "30 different labels in 30 rows, too many for classes"),
        (["a", "b"], {"problem_type": MULTI}, "rows.csv:2 has a string in column 'label', expected a list of labels"),
        (["a", "b"], {"separator": ""}, "is at least one character"),
        (["a", "b"], {"separator": ";", "problem_type": SINGLE}, "no `label_separator`"),
        ([["a"], ["b"]], {"separator": ";"}, "rows.csv:2 has a list in column 'label', expected labels in a string"),
        (["a", "b"], {"problem_type": "binary"}, "`problem_type` must be auto, single_label_classification"),
    ],
)
def test_refused(values, options, message):
    with pytest.raises(InputError, match=message):
        learn_labels(table(label=values), ["label"], **options)


def test_label_that_no_training_row_has():
    scheme = learn_labels(table(label=["a", "b"]), ["label"])
    with pytest.raises(InputError, match="rows.csv:3 has label 'c', which no training row has; known are 'a', 'b'"):
        scheme.encode(table(label=["a", "c"]))


def test_names_that_are_given_twice():
    with pytest.raises(InputError, match="two classes have one name"):
        learn_labels(table({"label": ["a", "a", "b"]}, label=[0, 2]), ["label"])


def test_several_columns_are_several_labels():
    rows = table(a=["0", "1"], b=["1", "0"])
    for options in ({"problem_type": SINGLE}, {"problem_type": REGRESSION}, {"separator": ";"}):
        with pytest.raises(InputError, match="one label column"):
            learn_labels(rows, ["a", "b"], **options)
    with pytest.raises(InputError, match="rows.csv:2 has no column 'c': there are 'a', 'b'"):
        learn_labels(rows, ["a", "c"])
