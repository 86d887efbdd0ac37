"""Tagged sentences as people have them, and one clear line for those that are none."""

import json

import pytest

from bert_toolkit.data.tagged_sentences import load_tagged_sentences, scheme_of
from bert_toolkit.errors import InputError

CONLL = """-DOCSTART- -X- O O

anna NNP B-NP B-PER
runs VBZ B-VP O
to TO B-PP O
new JJ B-NP B-LOC
york NNP I-NP I-LOC

every DT B-NP B-PER
child NN I-NP I-PER
sleeps VBZ B-VP O
"""


def rows_of(part, names):
    return [
        list(zip(words, [names[tag] for tag in tags], strict=True))
        for words, tags in zip(part["words"], part["tags"], strict=True)
    ]


def test_columns_with_blanks_tabs_and_windows_line_ends(tmp_path):
    expected = [
        [("anna", "B-PER"), ("runs", "O"), ("to", "O"), ("new", "B-LOC"), ("york", "I-LOC")],
        [("every", "B-PER"), ("child", "I-PER"), ("sleeps", "O")],
    ]
    contents = [CONLL, CONLL.replace(" ", "\t"), CONLL.replace("\n", "\r\n"), CONLL.rstrip("\n"), f"\ufeff{CONLL}"]
    contents.append(f"# sent_id = 1\n{CONLL}")
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.conll"
        path.write_bytes(content.encode())
        corpus = load_tagged_sentences(str(path), str(path))
        assert rows_of(corpus.train, corpus.tag_names) == expected, number
        assert corpus.tag_names == ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
        assert corpus.scheme == "BIO"


def test_words_with_blanks_stand_between_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text("new york\tB-LOC\n.\tO\n")
    corpus = load_tagged_sentences(str(tmp_path / "a.tsv"), str(tmp_path / "a.tsv"))
    assert corpus.train["words"][:] == [["new york", "."]]


@pytest.mark.parametrize("as_list", [False, True])
def test_json_with_strings_or_numbers(tmp_path, as_list):
    rows = [{"tokens": ["a", "b"], "ner_tags": [0, 1]}, {"tokens": ["c"], "ner_tags": [1]}]
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    (tmp_path / "a.json").write_text(text)
    corpus = load_tagged_sentences(str(tmp_path / "a.json"), str(tmp_path / "a.json"))
    assert rows_of(corpus.train, corpus.tag_names) == [[("a", "0"), ("b", "1")], [("c", "1")]]
    assert corpus.scheme == ""


def test_validation_is_split_off_by_the_words_alone(tmp_path):
    sentences = [f"word{i} {'AB'[i % 2]}\n" for i in range(40)]
    for name, order in (("a", sentences), ("b", sentences[::-1])):
        (tmp_path / name).write_text("\n".join(order))
    splits = [load_tagged_sentences(str(tmp_path / name), validation_fraction=0.25) for name in "ab"]
    held_out = [sorted(words[0] for words in split.validation["words"][:]) for split in splits]
    assert held_out[0] == held_out[1] and len(held_out[0]) == 10
    assert not set(held_out[0]) & {words[0] for words in splits[0].train["words"][:]}
    assert any("10 of the training sentences" in remark for remark in splits[0].remarks)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["O", "B-A", "I-A"], "BIO"),
        (["O", "I-A"], "BIO"),
        (["O", "B-A", "I-A", "E-A", "S-A"], "BIOES"),
        (["O", "B-A", "I-A", "L-A", "U-A"], "BILOU"),
        (["NN", "VBZ"], ""),
        (["O", "PER"], ""),
        (["B-A", "I-A"], ""),
    ],
)
def test_scheme_by_its_prefixes(tags, scheme):
    assert scheme_of(tags) == scheme


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "a B-X\nb\n", "a.conll:2 has 1 columns, expected 2, as the first line has"),
        ("a.conll", "a\n", "a.conll:1 has 1 columns, expected 2 or more"),
        ("a.conll", "a\t\n", "a.conll:1 has no tag"),
        ("a.conll", "\n\n", "holds no sentence"),
        ("a.conll", "", "holds no sentence"),
        ("a.conll", "a O\n\nb O\n\n" * 9, "only the tag 'O'"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "B"]}\n', "a.jsonl:1 has 1 words and 2 tags"),
        ("a.jsonl", '{"text": "a", "tags": ["O"]}\n', "has no list `tokens` or `words`, only"),
        ("a.jsonl", '{"tokens": "a b", "tags": ["O"]}\n', "`tokens` must be a list of strings"),
        ("a.jsonl", '["a"]\n["b"]\n', "must be an object"),
    ],
)
def test_what_is_no_tagged_sentence_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_tagged_sentences(str(tmp_path / name), str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_tag_that_no_training_sentence_has(tmp_path):
    (tmp_path / "train").write_text("a O\n\nb B-X\n")
    (tmp_path / "dev").write_text("a O\n\nb B-Y\n")
    with pytest.raises(InputError, match=r"dev:3 has the tag 'B-Y', which no training sentence has"):
        load_tagged_sentences(str(tmp_path / "train"), str(tmp_path / "dev"))
    with pytest.raises(InputError, match="absent is no file"):
        load_tagged_sentences(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="`train_data` must name a file"):
        load_tagged_sentences(None)
