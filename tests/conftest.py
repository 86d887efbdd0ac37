"""Settings for every test: one thread per process, no network, GPU tests only where there is a GPU."""

import os
import tarfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(no_gpu)


SUBJECTS = ["the dog", "a cat", "my friend", "the old king", "every child"]
VERBS = ["sleeps", "runs", "laughs", "sings", "waits"]


@pytest.fixture(scope="session")
def cola_dir(tmp_path_factory: pytest.TempPathFactory):
    """A folder in CoLA's raw layout whose sentences are acceptable exactly when the verb follows its subject."""
    folder = tmp_path_factory.mktemp("cola")
    pairs = [
        (f"src{i % 3}", label, f"{subject} {verb} today ." if label else f"{verb} {subject} today .")
        for i, subject in enumerate(SUBJECTS)
        for verb in VERBS
        for label in (0, 1)
    ]
    for name, rows in (
        ("in_domain_train", pairs * 2),
        ("in_domain_dev", pairs[:21]),
        ("out_of_domain_dev", pairs[21:]),
    ):
        lines = [f"{source}\t{label}\t{'' if label else '*'}\t{text}" for source, label, text in rows]
        (folder / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def newsgroups_archive(tmp_path_factory: pytest.TempPathFactory):
    """An archive in the by-date layout: twelve posts for each of four groups to train on, and as many to test."""
    folder = tmp_path_factory.mktemp("newsgroups")
    post, archive = folder / "post", folder / "20news-bydate.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for split in ("train", "test"):
            for group in ("alt.atheism", "comp.graphics", "sci.space", "talk.religion.misc"):
                for number in range(12):
                    post.write_text(f"Subject: {group}\n\nthe dog sleeps {number}\n")
                    tar.add(post, f"20news-bydate-{split}/{group}/{number}")
    return archive


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory):
    """A transformers BERT of two narrow layers with random weights and a word-level vocabulary, as a saved folder."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForPreTraining, BertTokenizer

    words = sorted({word for phrase in [*SUBJECTS, *VERBS, "today ."] for word in phrase.split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    folder = tmp_path_factory.mktemp("tiny_bert")
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizer(tokenizer_object=backend).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForPreTraining(config).save_pretrained(folder)
    return folder
