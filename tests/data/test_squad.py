"""Questions in the layout of SQuAD: what is read, how texts are divided, and one clear line for what does not fit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_toolkit.data.squad import load_questions
from bert_toolkit.errors import InputError

CONTEXT = "Ada wrote in 1843. 😀 Élan, then."


def entry(text="1843", begin=13, **changes):
    return {"id": "q", "question": "When?", "answers": [{"text": text, "answer_start": begin}], **changes}


def whole(*entries, context=CONTEXT):
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(entries)}]}]}


@pytest.fixture
def load(tmp_path):
    """Reads a value, or a text, as training and validation questions."""

    def load_value(value, **options):
        path = tmp_path / "a.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return load_questions(str(path), str(path), **options)

    return load_value


def test_rows_of_a_file(load):
    two = [{"text": "1843", "answer_start": 13}, {"text": "in 1843", "answer_start": 10}]
    splits = load(whole(entry(answers=two), entry("Élan", 21, question="  What? ")))
    rows = splits.train.to_list()
    assert [row["question"] for row in rows] == ["When?", "What?"]
    assert [row["answers"] for row in rows] == [["1843", "in 1843"], ["Élan"]]
    for row in rows:
        for text, begin in zip(row["answers"], row["begins"], strict=True):
            assert row["context"][begin:].startswith(text), "characters, whatever bytes they take"
    assert rows[1]["place"].endswith("a.json article 1 paragraph 1 question 2")
    assert not splits.some_have_none and splits.description.endswith("every question has an answer")


@pytest.mark.parametrize("none", [{"answers": []}, {}, {"answers": [], "plausible_answers": [{"text": "Ada"}]}])
def test_questions_without_an_answer(load, none):
    impossible = {"question": "Who?", "is_impossible": True, **none}
    splits = load(whole(entry(is_impossible=False), impossible))
    assert splits.train["answers"][:] == [["1843"], []]
    assert splits.some_have_none and splits.description.endswith("some questions have no answer")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", "a.json must be one JSON object with a list `data`"),
        ("{}", "must be one JSON object with a list `data`"),
        ("", "a.json is empty"),
        ("{", "is not valid JSON"),
        ({"data": {}}, "a.json: `data` must be a list, got an object"),
        ({"data": []}, "holds no question"),
        ({"data": [{"paragraphs": []}]}, "holds no question"),
        ({"data": [3]}, "article 1 must be an object with `paragraphs`, got a number"),
        (
            {"data": [{"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}}]},
            "article 1 has no `paragraphs`, only 'question', 'context', 'answers'",
        ),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "paragraph 1 has no `context`"),
        (whole(entry(), context=None), "`context` must be a text, got nothing"),
        (whole(entry(), context=" \n"), "paragraph 1 has an empty `context`"),
        (whole({"answers": []}), "question 1 has no `question`, only 'answers'"),
        (whole(entry(question=" ")), "question 1 is empty"),
        (whole(entry(answers=[])), "question 1 has no answer: where there is none, write `is_impossible` true"),
        (whole({"question": "q"}), "question 1 has no `answers`"),
        (whole(entry(answers={"text": ["1843"]})), "`answers` must be a list, got an object"),
        (whole(entry(answers=["1843"])), "must be an object with `text`, got a string"),
        (whole(entry(is_impossible="false")), "`is_impossible` must be true or false, got a string"),
        (whole(entry(is_impossible=0)), "`is_impossible` must be true or false, got a number"),
        (whole(entry(is_impossible=True)), "has `is_impossible` true and 1 answers: correct one of them"),
        (whole(entry(begin="13")), "`answer_start` must be a whole number, got a string"),
        (whole(entry(begin=13.0)), "`answer_start` must be a whole number, got a number"),
        (whole(entry(begin=True)), "`answer_start` must be a whole number, got a truth value"),
        (whole(entry(begin=12)), "at character 12, where ' 184' stands, it is at 13: correct `answer_start`"),
        (whole(entry(begin=-1)), "at character -1, where '' stands, it is at 13"),
        (whole(entry(begin=2**70)), "where '' stands, it is at 13"),
        (whole(entry("Élan", 22)), "the answer 'Élan' .* where 'lan,' stands, it is at 21"),
        (whole(entry("E\u0301lan", 21)), "where 'Élan,' stands: correct `answer_start`"),
        (whole(entry("", 3)), "the answer '' is not in its context"),
        (whole(entry(" ", 3)), "the answer ' ' is not in its context"),
        (whole(entry(question="\ud800")), "is not usable JSON"),
        ('{"data": [], "data": []}', "'data' is there twice in one object"),
        (whole({"question": "q", "is_impossible": True}), "no training question has an answer, so there is nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(load, value, message):
    with pytest.raises(InputError, match=message) as caught:
        load(value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="`train_data` must name a JSON file in the layout of SQuAD, got none"):
        load_questions(None)
    with pytest.raises(InputError, match="absent.json is no file"):
        load_questions(str(tmp_path / "absent.json"))
    with pytest.raises(InputError, match="is no file"):
        load_questions(str(tmp_path))


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.json").write_text(json.dumps(whole(entry())))
    assert len(load_questions("~/a.json", "~/a.json", "~/a.json").test) == 1


def test_name_of_a_file_may_be_no_text(tmp_path):
    name = b"\xff.json".decode(errors="surrogateescape")
    (tmp_path / name).write_text(json.dumps(whole(entry())))
    place = load_questions(str(tmp_path / name), str(tmp_path / name)).train["place"][0]
    assert place.endswith("\\udcff.json article 1 paragraph 1 question 1")


def many(count):
    texts = [f"Text {i} tells {i}." for i in range(count)]
    entries = [[entry(str(i), text.index("tells ") + 6), entry("Text", 0)] for i, text in enumerate(texts)]
    paragraphs = [{"context": text, "qas": of_text} for text, of_text in zip(texts, entries, strict=True)]
    return {"data": [{"paragraphs": paragraphs}]}


@given(st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_texts_are_divided_whole_and_whatever_their_order(tmp_path_factory, seed, random):
    folder = tmp_path_factory.mktemp("texts")
    value = many(20)
    (folder / "a.json").write_text(json.dumps(value))
    random.shuffle(value["data"][0]["paragraphs"])
    (folder / "b.json").write_text(json.dumps(value))
    first, second = (
        load_questions(str(folder / name), validation_fraction=0.2, seed=seed) for name in ("a.json", "b.json")
    )
    held_out = set(first.validation["context"][:])
    assert held_out == set(second.validation["context"][:]) and len(held_out) == 4
    assert not held_out & set(first.train["context"][:])
    assert len(first.train) == 32 and len(first.validation) == 8 and first.test is first.validation
    assert first.remarks[0] == f"The validation questions are 8 of the training questions (seed {seed})."
    assert "so the test scores are optimistic" in first.remarks[1]


@pytest.mark.parametrize(
    ("count", "fraction", "message"),
    [
        (1, 0.1, "leaves none of 1 contexts to train on"),
        (9, 0.99, "`validation_fraction` 0.99 leaves none of 9 contexts to train on"),
        (9, 0.0, r"`validation_fraction` must lie in \(0, 1\), got 0.0"),
        (9, 1.0, r"`validation_fraction` must lie in \(0, 1\), got 1.0"),
    ],
)
def test_too_few_texts(tmp_path, count, fraction, message):
    (tmp_path / "a.json").write_text(json.dumps(many(count)))
    with pytest.raises(InputError, match=message):
        load_questions(str(tmp_path / "a.json"), validation_fraction=fraction)
