"""Texts with tags or answers: how the fuzz tests write such files, and what must hold of those that are accepted."""

import json
from pathlib import Path
from random import Random

from input_mutations import VALUES, mutate

from bert_toolkit.data.squad import load_questions
from bert_toolkit.data.tagged_sentences import PREFIXES, load_tagged_sentences

WORDS = ["Ada", "naïve", "日本", '"no"', "#1", "-DOCSTART-", "10\u00a0000", "{x}", "a\u2028b", "."]
TAGS = ["O", "B-PER", "I-PER", "E-LOC", "10", "e\u0301"]

SENTENCES = [
    [(word, TAGS[(i * start) % 3]) for i, word in enumerate(WORDS[start:] + WORDS[: start // 2])]
    for start in range(1, 7)
]
COLUMNS = [
    "\n\n".join(
        "\n".join(mark.join([word, *middle, tag]) for word, tag in sentence) for sentence in SENTENCES
    ).encode()
    for mark, middle in ((" ", []), ("\t", []), (" ", ["NN"]), ("\t", ["_", "NN", ""]))
]
TAGGED_ROWS = [
    [{words: [w for w, _ in sentence], tags: [t for _, t in sentence]} for sentence in SENTENCES]
    for words, tags in (("tokens", "ner_tags"), ("words", "tags"))
]
TAGGED_ROWS.append([{"tokens": [w for w, _ in s], "tags": [len(t) for _, t in s]} for s in SENTENCES])
TAGGED_LINES = ["\n".join(map(json.dumps, rows)).encode() for rows in TAGGED_ROWS]
TAGGED_LISTS = [json.dumps(rows, ensure_ascii=False).encode() for rows in TAGGED_ROWS]


def squad() -> dict:
    """Six texts with two questions each, one of which has no answer."""
    paragraphs = []
    for number, (first, second) in enumerate(zip(WORDS, WORDS[1:7], strict=False)):
        context = f"{first} 😀 met {second} in {1900 + number}. Élan!"
        texts = [second, str(1900 + number), "Élan"]
        answers = [{"text": text, "answer_start": context.index(text)} for text in texts[number % 3 :]]
        entries = [{"id": str(number), "question": f"Whom did {first} meet?", "answers": answers}]
        entries.append({"id": f"{number}n", "question": "Why?", "is_impossible": True, "answers": []})
        paragraphs.append({"context": context, "qas": entries})
    return {"version": "v2.0", "data": [{"title": "a", "paragraphs": paragraphs[:3]}, {"paragraphs": paragraphs[3:]}]}


def write_questions(folder: Path, random: Random) -> None:
    """Damages the bytes of a file, or one value anywhere in it, so that it is still JSON."""
    value = squad()
    if random.random() < 0.6:
        damage_within(value, random)
    content = json.dumps(value, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    (folder / "a.json").write_bytes(content if random.random() < 0.5 else mutate(content, random))


def damage_within(value: dict | list, random: Random) -> None:
    """Replaces or removes one value of a list or object, at any depth."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = random.choice(keys)
    if isinstance(value[key], dict | list) and random.random() < 0.8:
        damage_within(value[key], random)
    elif random.random() < 0.2:
        del value[key]
    else:
        value[key] = random.choice([*VALUES, 3, 4, "met", "Élan", [{"text": "met", "answer_start": 6}]])


def read_questions(folder: Path) -> None:
    splits = load_questions(str(folder / "a.json"), validation_fraction=0.3)
    contexts = [set(part["context"][:]) for part in (splits.train, splits.validation)]
    assert contexts[0] and contexts[1] and not contexts[0] & contexts[1]
    answered = 0
    for row in [*splits.train, *splits.validation]:
        assert row["question"].strip() and row["context"].strip() and row["place"].isprintable()
        answered += bool(row["answers"])
        for text, begin in zip(row["answers"], row["begins"], strict=True):
            assert text.strip() and row["context"][begin : begin + len(text)] == text
    assert splits.some_have_none == (answered < len(splits.train) + len(splits.validation))
    assert any(splits.train["answers"][:])


def read_tagged(folder: Path) -> None:
    (path,) = folder.iterdir()
    splits = load_tagged_sentences(str(path), validation_fraction=0.3)
    names = splits.tag_names
    assert len(set(names)) == len(names) > 1 and all(name and name == name.strip() for name in names)
    assert "O" not in names or names[0] == "O"
    assert splits.scheme in ("", *PREFIXES)
    used = set()
    for row in [*splits.train, *splits.validation]:
        assert len(row["words"]) == len(row["tags"]) > 0 and row["place"].startswith(str(path))
        assert all(word.strip() and word.encode() for word in row["words"])
        used |= set(row["tags"])
    assert used <= set(range(len(names)))
