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
        ("a.jsonl", '{"tokens": ["a", " "], "tags": ["O", "B"]}\n', "a.jsonl:1: number 2 of `tokens` is empty"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [""]}\n', "a.jsonl:1: number 1 of `tags` is empty"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [true]}\n', r"`tags` must be a list of strings, got \[True\]"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [1.0]}\n', r"`tags` must be a list of strings, got \[1.0\]"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}\n', r"`tags` must be a list of strings, got \[None\]"),
        ("a.jsonl", '{"tokens": null, "tags": []}\n', "`tokens` must be a list of strings, got None"),
        (
            "a.conllu",
            "# sent_id = 1\n1\tAda\tAda\tPROPN\tNNP\t_\t0\troot\t_\t_\n",
            "a.conllu:2 has the ten columns of CoNLL-U, the first of which is no word: keep .* `cut -f 2,4`",
        ),
        ("a.csv", "Sentence #,Word,Tag\n1,Ada,B-PER\n", "a.csv:2 has 1 columns, expected 2"),
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


def test_header_is_no_sentence(tmp_path):
    for number, header in enumerate(["token\ttag", "Word\tPOS\tLabel", "tokens ner_tags", "\ufefftext\tlabel"]):
        mark, columns = ("\t" if "\t" in header else " "), len(header.split())
        rows = [mark.join([word, *["x"] * (columns - 2), tag]) for word, tag in (("anna", "B-PER"), ("runs", "O"))]
        path = tmp_path / f"{number}.tsv"
        path.write_text("\n".join([header, *rows, ""]))
        corpus = load_tagged_sentences(str(path), str(path))
        assert rows_of(corpus.train, corpus.tag_names) == [[("anna", "B-PER"), ("runs", "O")]]
        assert corpus.scheme == "BIO"


def test_spaces_that_do_not_break_belong_to_a_word(tmp_path):
    (tmp_path / "a.conll").write_text("10\u00a0000 B-NUM\neuros\u2009! O\n\u00a0\n  x   O \n")
    corpus = load_tagged_sentences(str(tmp_path / "a.conll"), str(tmp_path / "a.conll"))
    assert corpus.train["words"][:] == [["10\u00a0000", "euros\u2009!"], ["x"]]


def test_numbers_sort_as_numbers_and_names_are_composed(tmp_path):
    rows = [{"tokens": ["a"] * 4, "tags": [10, 2, 0, 1]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_tagged_sentences(str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl"))
    assert corpus.tag_names == ["0", "1", "2", "10"]
    assert corpus.train["tags"][:] == [[3, 2, 0, 1]]
    rows = [{"words": ["a", "b", "c"], "tags": ["O", " B-re\u0301", "B-r\u00e9"]}]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    corpus = load_tagged_sentences(str(tmp_path / "b.json"), str(tmp_path / "b.json"))
    assert corpus.tag_names == ["O", "B-r\u00e9"]


@pytest.mark.parametrize(
    ("tags", "remark"),
    [
        (["O", "B-PER", "b-per"], "Tags that differ in case only may be one: 'B-PER', 'b-per'."),
        (["O", "B-PER", "I-PER", "PER"], "parts of entities, but not 'PER': scores are those of"),
        (["B-PER", "I-PER"], "parts of entities, but O, the tag of words outside, is missing: scores are"),
        (["o", "B-PER", "I-PER"], "but O, the tag of words outside, is missing"),
        (["O", "b-per", "i-per"], "but their letters are not those of BIO, BIOES, BILOU: scores"),
    ],
)
def test_tags_that_are_almost_entities_are_told(tmp_path, tags, remark):
    (tmp_path / "a.conll").write_text("\n".join(f"word {tag}" for tag in tags))
    corpus = load_tagged_sentences(str(tmp_path / "a.conll"), str(tmp_path / "a.conll"))
    assert any(remark in each for each in corpus.remarks), corpus.remarks


def test_good_tags_are_not_remarked_on(tmp_path):
    for number, tags in enumerate((["O", "B-PER", "I-PER"], ["NN", "VBZ", ".", ",", ":", "''"], ["O", "PER", "LOC"])):
        path = tmp_path / f"{number}.conll"
        path.write_text("\n".join(f"word {tag}" for tag in tags))
        assert load_tagged_sentences(str(path), str(path), str(path)).remarks == []


def test_home_is_found_and_names_of_files_may_be_no_text(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = b"\xff.conll".decode(errors="surrogateescape")
    (tmp_path / name).write_text(CONLL)
    corpus = load_tagged_sentences(f"~/{name}", f"~/{name}")
    assert corpus.train["place"][0].endswith("\\udcff.conll:3")
