"""The newsgroups reader against scikit-learn's loader and filters, and what it refuses."""

import gzip
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_files
from sklearn.datasets._twenty_newsgroups import (
    strip_newsgroup_footer,
    strip_newsgroup_header,
    strip_newsgroup_quoting,
)

from bert_toolkit.data import newsgroups
from bert_toolkit.data.newsgroups import load_newsgroups, remove_footers, remove_headers, remove_quotes
from bert_toolkit.errors import InputError

GROUPS = ["alt.atheism", "comp.graphics", "sci.space"]


def post(group: str, number: int) -> bytes:
    """A post with headers, a quotation, a signature, and bytes that are not UTF-8."""
    return (
        f"From: someone{number}@example.org\nSubject: {group} question {number}\n\n"
        f"In article <{number}@example.org>, somebody wrote:\n> an old line {number}\n| another\n"
        f"My opinion number {number} on {group}: caf\xe9.\n\nA second paragraph.\n--\nSomeone\nPhone 555\n"
    ).encode("latin-1")


@pytest.fixture
def folder(tmp_path):
    """Ten training and four test posts of each of three groups."""
    root = tmp_path / "by-date"
    for split, count in (("20news-bydate-train", 10), ("20news-bydate-test", 4)):
        for group in GROUPS:
            (root / split / group).mkdir(parents=True)
            for number in range(count):
                (root / split / group / f"{50000 + number}").write_bytes(post(group, number))
    return root


@pytest.fixture
def archive(folder, tmp_path):
    path = tmp_path / "20news-bydate.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "20news-bydate-train", "20news-bydate-train")
        tar.add(folder / "20news-bydate-test", "20news-bydate-test")
    return path


def write_archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def as_scikit_learn(folder: Path, split: str, categories: list[str], remove: tuple[str, ...]) -> list[tuple[str, str]]:
    """(text, group) of a split, as `fetch_20newsgroups` makes them from the extracted files."""
    bunch = load_files(folder / f"20news-bydate-{split}", categories=categories, encoding="latin1")
    filters = {
        "headers": strip_newsgroup_header,
        "footers": strip_newsgroup_footer,
        "quotes": strip_newsgroup_quoting,
    }
    texts = bunch.data
    for name, filter_ in filters.items():
        if name in remove:
            texts = [filter_(text) for text in texts]
    return sorted(zip(texts, [bunch.target_names[target] for target in bunch.target], strict=True))


def rows(dataset, label_names: list[str]) -> list[tuple[str, str]]:
    return sorted(zip(dataset["text"][:], [label_names[label] for label in dataset["label"][:]], strict=True))


REMOVALS = [(), ("headers",), ("quotes", "headers"), ("footers",), ("headers", "footers", "quotes")]


@pytest.mark.parametrize("remove", REMOVALS, ids="-".join)
@pytest.mark.parametrize("form", ["folder", "archive", "folder with archive"])
def test_equals_scikit_learn(folder, archive, form, remove):
    data_dir = {"folder": folder, "archive": archive, "folder with archive": archive.parent}[form]
    categories = ["sci.space", "alt.atheism"]
    splits = load_newsgroups(data_dir=data_dir, categories=categories, remove=remove, validation_fraction=None)
    assert splits.label_names == ["alt.atheism", "sci.space"]
    assert splits.text_column == "text"
    assert rows(splits.train, splits.label_names) == as_scikit_learn(folder, "train", categories, remove)
    assert rows(splits.test, splits.label_names) == as_scikit_learn(folder, "test", categories, remove)


REAL = os.environ.get("NEWSGROUPS_DATA")


@pytest.mark.skipif(REAL is None, reason="needs the real posts: NEWSGROUPS_DATA=path of 20news-bydate*.tar.gz")
@pytest.mark.parametrize("remove", REMOVALS, ids="-".join)
def test_equals_scikit_learn_on_the_real_posts(tmp_path, remove):
    with tarfile.open(REAL) as tar:
        tar.extractall(tmp_path, filter="data")
    splits = load_newsgroups(data_dir=REAL, remove=remove, validation_fraction=None)
    assert (len(splits.train), len(splits.test)) == (2034, 1353)
    for split in ("train", "test"):
        expected = as_scikit_learn(tmp_path, split, list(newsgroups.CATEGORIES), remove)
        assert rows(getattr(splits, split), splits.label_names) == expected


LINES = st.sampled_from(
    ["", " ", "\t", "-", "--", " -- ", "---x", "-\u2028-", "\r", "> quoted", "|quoted", "he wrote:", "she said: hi"]
    + ["In article <1>", "x In article", "Quoted from y", "writes in z", "A: b", "text"]
)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(st.text(), st.lists(LINES, max_size=12).map("\n".join)))
def test_filters_equal_scikit_learn_on_any_text(text):
    assert remove_headers(text) == strip_newsgroup_header(text)
    assert remove_footers(text) == strip_newsgroup_footer(text)
    assert remove_quotes(text) == strip_newsgroup_quoting(text)


class TestSplits:
    def test_validation_is_split_off_train_by_group(self, folder):
        splits = load_newsgroups(data_dir=folder, categories=GROUPS, validation_fraction=0.2)
        assert Counter(splits.validation["label"][:]) == {0: 2, 1: 2, 2: 2}
        assert len(splits.train) == 24 and len(splits.test) == 12
        assert not set(splits.train["source"][:]) & set(splits.validation["source"][:])
        assert splits.remarks == []

    def test_validation_on_test_is_said(self, folder):
        splits = load_newsgroups(data_dir=folder, categories=GROUPS, validation_fraction=None)
        assert splits.validation.to_dict() == splits.test.to_dict()
        assert "optimistic" in splits.remarks[0]

    def test_all_groups(self, folder):
        assert load_newsgroups(data_dir=folder, categories=None).label_names == GROUPS

    def test_order_follows_names_not_the_archive(self, folder, archive, tmp_path):
        with tarfile.open(archive) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
        backwards = write_archive(tmp_path / "backwards.tar.gz", dict(reversed(members.items())))
        first, second = (load_newsgroups(data_dir=path, categories=GROUPS) for path in (archive, backwards))
        assert first.train.to_dict() == second.train.to_dict()
        assert first.train["source"][0] == "alt.atheism/50000"

    def test_posts_emptied_by_removal_are_kept_and_counted(self, folder):
        (folder / "20news-bydate-train" / "sci.space" / "1").write_bytes(b"From: a\n\n")
        splits = load_newsgroups(data_dir=folder, categories=GROUPS, remove=["headers"])
        assert splits.remarks == ["1 posts have no text left; they are kept, as scikit-learn does."]
        assert len(splits.train) + len(splits.validation) == 31
        assert splits.description.endswith("by-date, without headers")


class TestFilesOfOtherSystems:
    CLUTTER = {
        "20news-bydate-train/sci.space/.DS_Store": b"\0\0\0\1Bud1",
        "20news-bydate-train/sci.space/._50000": b"\0\5\x16\7\0\2\0\0Mac OS X",
        "20news-bydate-test/sci.space/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "20news-bydate-test/sci.space/desktop.ini": b"[.ShellClassInfo]",
        "20news-bydate-train/.AppleDouble/sci.space": b"x",
        "20news-bydate-train/._sci.space/1": b"x",
        "__MACOSX/20news-bydate-train/sci.space": b"x",
    }

    @pytest.mark.parametrize("form", ["folder", "archive"])
    def test_what_systems_leave_is_no_post(self, folder, archive, tmp_path, form):
        expected = load_newsgroups(data_dir=folder, categories=None, validation_fraction=None)
        if form == "archive":
            with tarfile.open(archive) as tar:
                members = {f"./{m.name}": tar.extractfile(m).read() for m in tar if m.isreg()}
            read_from = write_archive(tmp_path / "mac.tar.gz", members | self.CLUTTER)
        else:
            read_from = folder
            for name, content in self.CLUTTER.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        read = load_newsgroups(data_dir=read_from, categories=None, validation_fraction=None)
        assert read.label_names == GROUPS
        for split in ("train", "test"):
            assert getattr(read, split).to_dict() == getattr(expected, split).to_dict()

    @pytest.mark.parametrize("end", [b"\r\n", b"\r"], ids=["windows", "mac"])
    @pytest.mark.parametrize("remove", REMOVALS, ids="-".join)
    def test_ends_of_lines_do_not_matter(self, folder, end, remove):
        expected = [as_scikit_learn(folder, split, GROUPS, remove) for split in ("train", "test")]
        for path in folder.glob("*/*/*"):
            path.write_bytes(path.read_bytes().replace(b"\n", end))
        read = load_newsgroups(data_dir=folder, categories=GROUPS, remove=remove, validation_fraction=None)
        assert [rows(split, GROUPS) for split in (read.train, read.test)] == expected


class TestArchive:
    def test_members_outside_the_layout_are_not_read_and_nothing_is_written(self, archive, tmp_path):
        with tarfile.open(archive) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
        harmful = {
            "../../20news-bydate-train/alt.atheism/9": b"escape",
            "/tmp/20news-bydate-train/alt.atheism/9": b"absolute",
            "20news-bydate-train/alt.atheism/../../../9": b"dots",
            "README": b"text",
        }
        links = {"20news-bydate-train/alt.atheism/99999": "/etc/hostname"}
        path = write_archive(tmp_path / "harmful.tar.gz", members | harmful, links)
        before = sorted(tmp_path.rglob("*"))
        read = load_newsgroups(data_dir=path, categories=GROUPS)
        assert read.train.to_dict() == load_newsgroups(data_dir=archive, categories=GROUPS).train.to_dict()
        assert sorted(tmp_path.rglob("*")) == before

    def test_oversized_member_is_refused_before_it_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(newsgroups, "LARGEST_POST", 1000)
        path = write_archive(tmp_path / "a.tar.gz", {"20news-bydate-train/sci.space/1": b"x" * 1001})
        with pytest.raises(
            InputError, match="a post of 1001 bytes, 20news-bydate-train/sci.space/1: not 20 newsgroups"
        ):
            load_newsgroups(data_dir=path)

    @pytest.mark.parametrize(
        "content", [b"", b"no archive", gzip.compress(b"no tar inside")], ids=["empty", "text", "gzip"]
    )
    def test_not_an_archive(self, tmp_path, content):
        (tmp_path / "20news-bydate.tar.gz").write_bytes(content)
        with pytest.raises(InputError, match="20news-bydate.tar.gz is not a whole tar archive: "):
            load_newsgroups(data_dir=tmp_path)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damaged_archive_is_refused_or_gives_the_same_posts(self, archive, tmp_path, data):
        whole = archive.read_bytes()
        expected = load_newsgroups(data_dir=archive, categories=GROUPS, validation_fraction=None)
        damaged = bytearray(whole)
        if data.draw(st.booleans()):
            del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
        else:
            damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path = tmp_path / "damaged.tar.gz"
        path.write_bytes(damaged)
        try:
            read = load_newsgroups(data_dir=path, categories=GROUPS, validation_fraction=None)
        except InputError as refusal:
            assert "\n" not in str(refusal)
        else:
            assert read.train.to_dict() == expected.train.to_dict()
            assert read.test.to_dict() == expected.test.to_dict()


@pytest.mark.parametrize(
    "dress",
    [
        lambda c: c.replace(b"\n", b"\r\n"),
        lambda c: c.replace(b"\n", b"\r"),
        lambda c: c.replace(b"\n", b"\r\r\n"),
        lambda c: c.replace(b"\n\n", b"\r\r").replace(b"\n", b"\r\n"),
        lambda c: c.replace(b"\n", b"\r", 3).replace(b"\n", b"\r\n"),
        lambda c: c.decode("latin-1").encode("utf-8-sig"),
        lambda c: c.decode("latin-1").encode("utf-16"),
        lambda c: b"\xff\xfe" + c.decode("latin-1").replace("\n", "\r\n").encode("utf-16-le"),
    ],
    ids=["windows", "mac", "windows-twice", "mac-and-windows", "mac-headers", "marked", "utf-16", "utf-16-windows"],
)
@pytest.mark.parametrize("remove", [(), ("headers", "footers", "quotes")])
def test_posts_in_other_dress_are_the_same_posts(folder, dress, remove):
    expected = load_newsgroups(data_dir=folder, categories=GROUPS, remove=remove)
    for path in folder.glob("*/*/*"):
        path.write_bytes(dress(path.read_bytes()))
    dressed = load_newsgroups(data_dir=folder, categories=GROUPS, remove=remove)
    assert dressed.train.to_dict() == expected.train.to_dict()
    assert all(text.strip() for text in dressed.test["text"])


def test_carriage_return_among_newlines_is_text(folder):
    """So that the original posts stay as scikit-learn reads them."""
    path = next(folder.glob("*test/*/*"))
    path.write_bytes(b"a\rb\n\nc\n")
    assert "a\rb\n\nc\n" in load_newsgroups(data_dir=folder, categories=GROUPS).test["text"][:]


def test_what_lies_deeper_is_not_passed_over_in_silence(folder, tmp_path):
    posts = {f"20news-bydate-{split}/{group}/1": post(group, 1) for split in ("train", "test") for group in GROUPS}
    deep = {"20news-bydate-train/sci.space/more/2": b"lost"}
    with pytest.raises(InputError, match="holds 20news-bydate-train/sci.space/more/2: posts lie in 20news-bydate-tra"):
        load_newsgroups(data_dir=write_archive(tmp_path / "20news-bydate.tar.gz", posts | deep))
    (folder / "20news-bydate-train/sci.space/more").mkdir()
    with pytest.raises(InputError, match="sci.space/more is no file: posts lie in 20news-bydate-train/GROUP, nothing"):
        load_newsgroups(data_dir=folder)
    (folder / "20news-bydate-train/sci.space/more").rmdir()
    (folder / "20news-bydate-train/sci.space/gone").symlink_to("nowhere")
    with pytest.raises(InputError, match="sci.space/gone is no file"):
        load_newsgroups(data_dir=folder)
    (folder / "20news-bydate-train/sci.space/gone").rename(folder / "20news-bydate-train/sci.space/._gone")
    (folder / "20news-bydate-train/sci.space/@eaDir").mkdir()
    assert len(load_newsgroups(data_dir=folder, categories=GROUPS, validation_fraction=None).train) == 30


def test_empty_posts_are_counted(folder):
    for path in list(folder.glob("*train/*/*"))[:3]:
        path.write_bytes(b"")
    remarks = load_newsgroups(data_dir=folder, categories=GROUPS).remarks
    assert remarks == ["3 posts have no text left; they are kept, as scikit-learn does."]


class TestRefusals:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"source": "web"}, "`dataset` must be auto, scikit-learn or hub, got web"),
            ({"source": "hub", "data_dir": "x"}, "`data_dir` and `dataset hub` contradict one another"),
            ({"remove": ["header"]}, "`remove` accepts headers, footers, quotes, got header"),
            ({"data_dir": "no/such/place"}, "`data_dir` no/such/place does not exist"),
            ({"source": "hub"}, "the hub https://huggingface.co does not answer; pass `data_dir`"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(InputError, match=message):
            load_newsgroups(**arguments)

    def test_unknown_group_lists_those_there_are(self, folder):
        with pytest.raises(
            InputError, match="names sci.spice, which has no train posts; there are alt.atheism, comp.graphics"
        ):
            load_newsgroups(data_dir=folder, categories=["alt.atheism", "sci.spice"])

    def test_one_group(self, folder):
        with pytest.raises(InputError, match="at least two newsgroups are needed, got sci.space"):
            load_newsgroups(data_dir=folder, categories=["sci.space"])

    def test_folder_of_something_else(self, tmp_path):
        with pytest.raises(
            InputError, match="holds neither 20news-bydate-train and 20news-bydate-test nor an archive"
        ):
            load_newsgroups(data_dir=tmp_path)

    def test_without_test_posts(self, folder):
        (folder / "20news-bydate-test").rename(folder / "elsewhere")
        with pytest.raises(InputError, match="no test posts: expected files 20news-bydate-test/GROUP/NUMBER"):
            load_newsgroups(data_dir=folder, categories=GROUPS)

    def test_fraction(self, folder):
        with pytest.raises(InputError, match=r"`validation_fraction` must lie in \(0, 1\), got 1.5"):
            load_newsgroups(data_dir=folder, categories=GROUPS, validation_fraction=1.5)


class TestScikitLearnCache:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        home = tmp_path / "scikit_learn_data"
        home.mkdir()
        monkeypatch.setenv("SCIKIT_LEARN_DATA", str(home))
        return home

    @pytest.mark.parametrize("source", ["auto", "scikit-learn"])
    @pytest.mark.parametrize("place", ["20news_home", "."])
    def test_extracted_files(self, folder, cache, source, place):
        (cache / place).mkdir(exist_ok=True)
        for split in ("20news-bydate-train", "20news-bydate-test"):
            (folder / split).rename(cache / place / split)
        assert len(load_newsgroups(source, categories=GROUPS).test) == 12

    def test_archive_in_the_cache(self, archive, cache):
        (cache / "20news_home").mkdir()
        archive.rename(cache / "20news_home" / archive.name)
        splits = load_newsgroups(categories=GROUPS)
        assert str(cache / "20news_home") in splits.description

    def test_pickle_is_refused_unopened(self, cache):
        (cache / "20news-bydate_py3.pkz").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        with pytest.raises(
            InputError, match="20news-bydate_py3.pkz is a pickle, which can run code .* pass `data_dir`"
        ):
            load_newsgroups("scikit-learn")
        assert not Path("pwned").exists()

    def test_empty_cache(self):
        with pytest.raises(InputError, match="holds no 20 newsgroups: pass `data_dir`, or `dataset hub`"):
            load_newsgroups("scikit-learn")
        with pytest.raises(InputError, match="does not answer and scikit-learn's cache holds no readable files; pass"):
            load_newsgroups()


class TestHub:
    @pytest.fixture(autouse=True)
    def hub(self, tmp_path, monkeypatch):
        def load_dataset(name):
            assert name == "SetFit/20_newsgroups"
            texts = {"train": ["a b", "c", "", "d\u2019s"], "test": ["e", "f", "g", "h"]}
            groups = ["sci.space", "alt.atheism", "sci.space", "alt.atheism"]
            return {
                split: datasets.Dataset.from_dict({"text": text, "label": [14, 0, 14, 0], "label_text": groups})
                for split, text in texts.items()
            }

        monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
        monkeypatch.setattr(newsgroups, "hub_answers", lambda: True)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def test_columns_labels_and_remarks(self):
        splits = load_newsgroups("hub", categories=["sci.space", "alt.atheism"], validation_fraction=None)
        assert splits.train["text"][:] == ["c", "d\u2019s", "a b", ""]
        assert splits.train["label"][:] == [0, 0, 1, 1]
        assert (
            splits.description == "20 newsgroups from the hub (SetFit/20_newsgroups), without headers, footers, quotes"
        )
        assert "come without headers, footers and quotes" in splits.remarks[0]
        assert splits.remarks[1].startswith("1 posts have no text left")

    def test_no_remark_where_all_three_were_asked_for(self):
        splits = load_newsgroups(categories=["sci.space", "alt.atheism"], remove=["quotes", "headers", "footers"],
                                 validation_fraction=0.4)  # fmt: skip
        assert not any("whatever" in remark for remark in splits.remarks)

    def test_failure_after_the_answer(self, monkeypatch):
        def fail(name):
            raise ConnectionError("gone\nmore")

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(
            InputError, match="the hub answered, but SetFit/20_newsgroups could not be loaded: gone; pass"
        ):
            load_newsgroups()


def test_names_alone_are_names(newsgroups_archive):
    groups = {"alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc"}
    for everything in ("all", ["all"], None):
        assert set(load_newsgroups(data_dir=newsgroups_archive, categories=everything).label_names) == groups
    with pytest.raises(InputError, match="sci.med"):
        load_newsgroups(data_dir=newsgroups_archive, categories="sci.med")
    posts = load_newsgroups(data_dir=newsgroups_archive, categories="all", remove="headers").train
    assert not any("Subject" in text for text in posts["text"])
