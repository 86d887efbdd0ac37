"""What labels mean, and which of them are refused."""

import re
from decimal import Decimal

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


ONES = [[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]]


# what a file may hold for 0 and 1
KINDS = {
    "int": int,
    "float": float,
    "bool": bool,
    "string": str,
    "decimal": "{}.0".format,
    "database": Decimal,
    "two-places": lambda mark: Decimal(f"{mark}.00"),
    "exponent": "{}e0".format,
    "wide": "０１".__getitem__,
    "minus-zero": lambda mark: 1.0 if mark else -0.0,
    "name": [" False", "true "].__getitem__,
}


def as_kind(rows, kind):
    return [list(map(kind, row)) for row in rows]


class TestLists:
    """Labels of a row are names, numbers of classes, or a 0 or 1 for each class."""

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_zero_or_one_for_each_class(self, kind):
        rows = table(label=as_kind(ONES, kind))
        scheme = learn_labels(rows, ["label"])
        assert (scheme.problem_type, scheme.names) == (MULTI, ["0", "1", "2"])
        assert scheme.encode(rows) == ONES
        assert scheme.encode(table(label=[[1, 0, 0]])) == [[1, 0, 0]], "one row would not say what it means"

    @pytest.mark.parametrize("separator", [" ", ",", "|"])
    def test_zero_or_one_for_each_class_in_one_cell(self, separator):
        rows = table(label=[separator.join(map(str, row)) for row in ONES])
        assert learn_labels(rows, ["label"], separator=separator).encode(rows) == ONES
        with pytest.raises(InputError, match="rows.csv:2 has '0.1.0' in .*, several values as one text"):
            learn_labels(rows, ["label"])

    @pytest.mark.parametrize(
        "values",
        [
            [[0, 1], [1, 0]],
            [[0, 1, 0], [1, 0, 0]],
            [[1, 1], [0, 1]],
            [[0, 0], [0, 0], [1, 1]],
            [[True], [False]],
        ],
        ids=["two-classes", "one-of-three", "repeated", "all-or-none", "one-class"],
    )
    def test_few_classes(self, values):
        scheme = learn_labels(table(label=values), ["label"])
        assert scheme.names == [str(i) for i in range(len(values[0]))]
        assert scheme.encode(table(label=values)) == [list(map(float, row)) for row in values]

    @pytest.mark.parametrize(
        ("values", "names", "encoded"),
        [
            ([[2], [0, 3], [], [3, 2]], ["0", "2", "3"], [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1]]),
            ([[0, 1], [1], [0], []], ["0", "1"], [[1, 1], [0, 1], [1, 0], [0, 0]]),
            ([[0], [1], [1]], ["0", "1"], [[1, 0], [0, 1], [0, 1]]),
            ([["a", "a"], ["b"]], ["a", "b"], [[1, 0], [0, 1]]),
            ([[2.0], [10.0, 2.0]], ["2", "10"], [[1, 0], [1, 1]]),
            ([["1.5", "2"], ["2"]], ["1.5", "2"], [[1, 1], [0, 1]]),
        ],
        ids=["numbers", "zero-and-one", "one-each", "name-twice", "floats", "texts"],
    )
    def test_labels_themselves(self, values, names, encoded):
        scheme = learn_labels(table(label=values), ["label"])
        assert (scheme.names, scheme.encode(table(label=values))) == (names, encoded)

    def test_names_of_the_file(self):
        rows = table({"label": ["x", "y", "z"]}, label=ONES)
        assert learn_labels(rows, ["label"]).names == ["x", "y", "z"]
        assert learn_labels(table({"label": ["no", "yes"]}, label=ONES), ["label"]).names == ["0", "1", "2"]
        rows = table({"label": ["x", "y"]}, label=[[0, 1], [1, 0]])
        assert learn_labels(rows, ["label"]).encode(rows) == [[0, 1], [1, 0]], "as numbers every row would have both"
        rows = table({"label": ["x", "y", "z"]}, label=[[0, 1], [2, 0]])
        assert learn_labels(rows, ["label"]).encode(rows) == [[1, 1, 0], [1, 0, 1]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                [[0, 1, 0], [1, 1], [0, 0, 1]],
                r"rows.csv:3 has \[1, 1\] in column 'label', expected 3 values of 0 or 1",
            ),
            ([[0, 1, 0], [], [1, 0, 1]], r"rows.csv:3 has \[\] in column 'label', expected 3 values"),
            ([[1, 1], [0, 1, 0], [0, 0, 1]], r"rows.csv:2 has \[1, 1\]"),
            ([[0, 2, 0], [1, 0, 0]], "rows.csv:2 has .*: a list holds labels, each once, or a 0 or 1 for each class"),
            ([[0.1, 0.9], [0.8, 0.2]], "rows.csv:2 has .*; counts and probabilities are neither"),
            ([[1.0], [0.5]], "rows.csv:3 has .*; counts and probabilities"),
            ([[[0, 1, 0]], [[1, 0, 0]]], "rows.csv:2 has a list as a label"),
            ([{"a": 1, "b": 0}, {"a": 0, "b": 1}], "rows.csv:2 has an object as a label"),
            ([[0, 1, None], [1, 1, 0]], "rows.csv:2 has nothing as a label"),
            (
                [[0, 1], [True, False]],
                "rows.csv:3 has a truth value as a label in 'label' and rows.csv:2 has a number",
            ),
        ],
        ids=["ragged", "empty", "first", "counts", "soft", "half", "nested", "object", "none", "mixed"],
    )
    def test_refused(self, values, message):
        with pytest.raises(InputError, match=message):
            learn_labels(table(label=values), ["label"])

    @pytest.mark.parametrize(
        ("mark", "other"), [("yes", "no"), ("np.True_", "np.False_"), ("x", "."), (1, -1), ("+", "0")]
    )
    def test_marks_that_are_not_0_and_1_are_refused(self, mark, other):
        rows = [[(other, mark)[value] for value in row] for row in ONES]
        with pytest.raises(InputError, match="hold nothing but .*: for a 0 or 1 for each class write 0"):
            learn_labels(table(label=rows), ["label"])
        assert learn_labels(table(label=[["yes", "yes"], ["no"]]), ["label"]).names == ["no", "yes"]

    def test_another_table_must_fit(self):
        scheme = learn_labels(table(label=ONES), ["label"])
        for value, reason in (([0, 1], "expected 3 values"), ([0, 2, 1], "expected 3 values"), ("010", "a string")):
            with pytest.raises(InputError, match=f"rows.csv:3 has .*{reason}"):
                scheme.encode(table(label=[[0, 0, 1], value]))


@pytest.mark.parametrize(
    "cell",
    [
        *("['a', 'b']", '["a"]', "[0, 1, 0]", "[0 1 0]", "[0. 1.]", "[]", "('a', 'b')", "('a',)", "{'a', 'b'}"),
        *("array([0, 1])", "tensor([1., 0.])", "array(['a'], dtype=object)", "[[0, 1], [1]]", '{"a": 1, "b": 0}'),
        *(
            "[True, False]",
            "[sports, news]",
            "['a' 'b']",
            "[1]",
            ' ["it is", "a\'s"] ',
            "0 1 0",
            "0,1",
            "1|0|0",
            "[None]",
            *("0.0 1.0 0.0", "1.0,0.0", "True,False", "true false", "0/1/0", "0-1-0", "<0 1 0>", "0\t1\t0"),
            *("{a,b}", "[a;b]", "[0;1;0]", "［0，1，0］", "{0,1,0}", "list([0, 1])"),
        ),
    ],
)
def test_list_that_is_written_as_text_is_refused(cell):
    rows = table(label=["plain", cell, "plain", cell])
    with pytest.raises(InputError, match=r"rows.csv:3 has .* several values as one text: give lists in .jsonl"):
        learn_labels(rows, ["label"])
    assert len(learn_labels(rows, ["label"], SINGLE).names) == 2, "it can be insisted on"


@pytest.mark.parametrize("cell", ["['a', 'b']", '["a", "b"]', "{'a', 'b'}", "[a,b]", "(a, b)"])
def test_brackets_do_not_become_parts_of_names(cell):
    with pytest.raises(InputError, match="rows.csv:2 has .* several values as one text"):
        learn_labels(table(label=[cell, "a", "b"]), ["label"], separator=",")
    with pytest.raises(InputError, match="rows.csv:2 has .* several values as one text|expected a list of labels"):
        learn_labels(table(label=[cell, cell]), ["label"], MULTI)


def test_names_with_brackets_are_names():
    names = ["turned [around]", "[UNK]", "(1)", "a (b)", "{x", "1 or 0", "C++ [legacy, old]", "0/1", "1-0", "{a}"]
    assert learn_labels(table(label=names * 2), ["label"]).names == sorted(names)


@pytest.mark.parametrize(
    ("values", "columns", "separator"),
    [
        ([[0, 1, 0]] * 3, ["label"], None),
        ([["a", "b"], ["b", "a"]], ["label"], None),
        ([[-1, 1], [1, -1]], ["label"], None),
        (["a;b", "b; a"], ["label"], ";"),
    ],
)
def test_several_labels_that_are_the_same_in_all_rows(values, columns, separator):
    with pytest.raises(InputError, match=r"all \d rows have the same labels in column 'label': nothing to learn"):
        learn_labels(table(label=values), columns, separator=separator)


def test_columns_of_zero_and_one_that_are_the_same_in_all_rows():
    with pytest.raises(InputError, match="all 2 rows have the same labels in column 'a', 'b': nothing to learn"):
        learn_labels(table(a=[1, 1], b=[0, 0]), ["a", "b"])


def test_decimals_of_databases_are_numbers():
    classes = table(label=[Decimal("1.0"), Decimal("0.0"), Decimal("1.0")])
    assert learn_labels(classes, ["label"]).names == ["0", "1"]
    numbers = table(label=[Decimal("1.25"), Decimal("0.5"), Decimal("1")])
    assert learn_labels(numbers, ["label"]).encode(numbers) == [1.25, 0.5, 1.0]


@pytest.mark.parametrize("first", ["0,5", "1.234,5", "1 234 567,25", "1\xa0234,5", "-10,75"])
def test_decimal_commas_are_refused(first):
    with pytest.raises(InputError, match="rows.csv:2 has .* or decimals with a point"):
        learn_labels(table(label=[first, "1,0", "2,5", "x"]), ["label"])


def test_marks_separated_otherwise_than_was_said():
    with pytest.raises(InputError, match="rows.csv:2 has '0,1,0' .* several values as one text"):
        learn_labels(table(label=["0,1,0", "1,0,0"]), ["label"], separator=";")
    rows = table(label=["True,False", "False,True"])
    assert learn_labels(rows, ["label"], separator=",").encode(rows) == [[1, 0], [0, 1]]


class TestNumbers:
    """Whatever wrote the file: numbers compare and sort as numbers."""

    @pytest.mark.parametrize(
        ("values", "names"),
        [
            (["0", "1", "0.0", "1.0"], ["0", "1"]),
            (["10.0", "2.0", "1.0", "0.0"], ["0", "1", "2", "10"]),
            (["-1", "1", "+1", "-0", "0"], ["-1", "0", "1"]),
            (["1e1", "9", "10"], ["9", "10"]),
            (["01", "02", "10", "01"], ["01", "02", "10"]),
            (["12345678901234567890", "12345678901234567891"], ["12345678901234567890", "12345678901234567891"]),
            ([1.0, 0.0, 1.0], ["0", "1"]),
            ([3, 2.0, 10], ["2", "3", "10"]),
            (["2", "a", "2.0", "10"], ["10", "2", "a"]),
        ],
    )
    def test_names(self, values, names):
        scheme = learn_labels(table(label=values), ["label"])
        assert (scheme.problem_type, scheme.names) == (SINGLE, names)

    def test_decimals_as_classes(self):
        scheme = learn_labels(table(label=["1.50", "1.5", "10.5", "2.5"]), ["label"], SINGLE)
        assert scheme.names == ["1.5", "2.5", "10.5"]

    @pytest.mark.parametrize("train", [["1", "0"], ["1.0", "0.0"], [1, 0], [1.0, 0.0]], ids=str)
    @pytest.mark.parametrize("other", [["1", "0"], ["1.0", "0.0"], [1, 0], [1.0, 0.0]], ids=str)
    def test_splits_that_write_them_differently(self, train, other):
        assert learn_labels(table(label=train), ["label"]).encode(table(label=other)) == [1, 0]

    def test_merged_spellings_are_said(self):
        (remark,) = learn_labels(table(label=["0", "1", "0.0", "1.0"]), ["label"]).remarks
        assert remark == "Labels of several spellings were taken for one class: '0', '0.0' as '0'; '1', '1.0' as '1'."

    def test_leading_zeros_can_be_numbers_to_predict(self):
        rows = table(label=["01.5", "002", "3"])
        assert learn_labels(rows, ["label"]).encode(rows) == [1.5, 2.0, 3.0]


class TestNames:
    @pytest.mark.parametrize(
        "marker",
        [
            *("nan", "NaN", "-", "N/A", "NA", "#N/A", "null", "NULL", "None", "<NA>", "?", " - ", "\\N", "#VALUE!"),
            *("N.A.", "n.a.", "Null", "<null>", "—", "–", "−", "－", "Ｎ／Ａ", "\u200b", "\ufeff"),
            *("''", '""', "1.#IND"),
        ],
    )
    def test_marks_of_missing_labels_are_refused_with_their_number(self, marker):
        rows = ["a", marker, "b", "a", marker, marker]
        message = rf"rows.csv:3 has {re.escape(repr(marker.strip()))}, which marks a missing label, in column 'label' "
        message += r"\(so have 2 later rows\): fill it in or remove the row, or rename the class if it is one"
        with pytest.raises(InputError, match=message):
            learn_labels(table(label=rows), ["label"])
        with pytest.raises(InputError, match="which marks a missing label"):
            learn_labels(table(label=[["a"], [marker]]), ["label"])
        with pytest.raises(InputError, match="rows.csv:2 has .*, which marks a missing label"):
            learn_labels(table(label=["a", "b"]), ["label"]).encode(table(label=[marker]))

    def test_names_that_only_resemble_such_marks(self):
        values = ["none", "NONE ", "na", "Nan Goldin", "-1", "unknown"]
        assert len(learn_labels(table(label=values), ["label"]).names) == 6
        assert learn_labels(table({"label": ["None", "-"]}, label=[0, 1]), ["label"]).names == ["None", "-"]

    def test_composed_and_decomposed_names_are_one(self):
        rows = table(label=["caf\u00e9", "cafe\u0301", "th\u00e9"])
        scheme = learn_labels(rows, ["label"])
        assert (scheme.names, scheme.encode(rows)) == (["caf\u00e9", "th\u00e9"], [0, 0, 1])
        assert scheme.remarks == [
            "Labels of several spellings were taken for one class: 'cafe\\u0301', 'caf\\xe9' as 'café'."
        ]
        assert scheme.encode(table(label=["the\u0301"])) == [1]

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            *(("TRUE", "True"), ("sci-fi", "Sci Fi"), ("New_York", "new york"), ("yes", "yes."), ("01", "1")),
            *(("ﬁne", "fine"), ("a\u200bb", "ab"), ("Ｙｅｓ", "Yes"), ("straße", "STRASSE")),
            *(("R&amp;D", "R&D"), ("don’t", "don't"), ("−1", "-1"), ("a–b", "a-b")),
            *(("KIZ", "kız"), ("İyi", "iyi"), ("раss", "pass"), ("١", "1"), ("１", "1"), ("1,000", "1000")),
            *(("1 000", "1000"), ("\u200fa", "a"), ("news\xadpaper", "newspaper"), ("m²", "m2")),
            *(("True", "1"), ("FALSE", "0"), ("'a'", "a"), ("Ⅳ", "iv")),
        ],
    )
    def test_classes_that_look_alike_are_remarked_on(self, first, second):
        scheme = learn_labels(table(label=[first, second, "other"]), ["label"])
        assert len(scheme.names) == 3
        assert scheme.remarks == [
            f"Classes that look alike may be one: {', '.join(map(repr, sorted([first, second])))}."
        ]
        scheme = learn_labels(table(label=[first, "other"]), ["label"])
        with pytest.raises(
            InputError, match=f"which no training row has; known .* did you mean {re.escape(repr(first))}"
        ):
            scheme.encode(table(label=[second]))

    @pytest.mark.parametrize("names", [["C", "C++", "C#"], ["1", "-1", "10"], ["a", "á"], ["x1", "x2"], ["1-2", "12"]])
    def test_classes_that_do_not_look_alike(self, names):
        assert learn_labels(table(label=names), ["label"]).remarks == []

    @pytest.mark.parametrize("name", ["na", "none", "nil", ".", "…", "...", "*", "(blank)", "undefined", "-99", "Nan"])
    def test_names_that_may_mark_a_missing_label_are_remarked_on(self, name):
        (remark,) = learn_labels(table(label=["a", "b", name]), ["label"]).remarks
        assert remark == f"Classes whose names may mark a missing label: {name!r}."

    def test_minus_one_beside_numbers_from_zero(self):
        (remark,) = learn_labels(table(label=["0", "1", "2", "-1"]), ["label"]).remarks
        assert remark == "Classes whose names may mark a missing label: '-1'."
        assert learn_labels(table(label=["0", "1", "-1"]), ["label"]).remarks == [], "negative, neutral, positive"

    def test_codes_of_zeros_and_ones_are_remarked_on(self):
        (remark,) = learn_labels(table(label=["010", "100", "001"]), ["label"]).remarks
        assert remark == "Classes that may be a 0 or 1 for each of several labels: '001'; '010'; '100'."
        assert learn_labels(table(label=["10", "11", "100"]), ["label"]).remarks == []

    def test_numbers_made_of_numbers_are_remarked_on(self):
        (remark,) = learn_labels(table(label=["1", "2 4", "2", "1 3 5"]), ["label"]).remarks
        assert remark.endswith("in one cell: '1 3 5' with `label_separator ' '`; '2 4' with `label_separator ' '`.")

    def test_names_made_of_names_are_remarked_on(self):
        (remark,) = learn_labels(table(label=["a", "b", "a; b", "Washington, D.C."]), ["label"]).remarks
        assert "may be several labels in one cell: 'a; b' with `label_separator ;`." in remark

    def test_each_file_has_its_own_numbers(self):
        """The same names in another order, as two exports of one dataset can have them."""
        train = table({"label": ["no", "yes"]}, label=[0, 1])
        other = table({"label": ["yes", "no"]}, label=[0, 1])
        scheme = learn_labels(train, ["label"])
        assert (scheme.encode(train), scheme.encode(other)) == ([0, 1], [1, 0])
        assert scheme.encode(table(label=["yes"])) == [1]
        assert learn_labels(table(label=["no", "yes"]), ["label"]).encode(other) == [1, 0]


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
        ([0.5, "a;b"], {"separator": ";"}, "rows.csv:2 has a number in column 'label', expected labels in a string"),
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
