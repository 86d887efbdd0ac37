"""CoLA, the Corpus of Linguistic Acceptability (Warstadt et al. 2019): raw files, hub, or the bundled sample."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from bert_toolkit.data.corpus_splits import CorpusSplits, Origin, labeled_rows, split_off_validation
from bert_toolkit.data.hub_tables import download
from bert_toolkit.data.text_files import read_text
from bert_toolkit.errors import InputError
from bert_toolkit.hub import hub_answers

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_NAMES = ["unacceptable", "acceptable"]
SAMPLE_DIR = Path(__file__).parent / "sample"
HUB_DATASET = "nyu-mll/glue"

TRAIN_FILE = "in_domain_train.tsv"
IN_DOMAIN_FILE = "in_domain_dev.tsv"
OUT_OF_DOMAIN_FILE = "out_of_domain_dev.tsv"

SAMPLE_REMARK = (
    "These are not CoLA scores: the data are a small sample written for this package and say nothing about the public "
    "corpus."
)
NO_TEST_REMARK = (
    "There are no out-of-domain rows: the test rows are the dev rows, which chose the checkpoint too, so the test "
    "scores are optimistic."
)
JOINED_REMARK = "GLUE joins the in-domain and out-of-domain dev rows: both count as in-domain dev here."
# GLUE's validation split is said to be the 527 in-domain dev rows of the public corpus, then the 516 others:
# it is divided only where the last in-domain sentence stands in its place
GLUE_DEV_ROWS, GLUE_IN_DOMAIN_ROWS, LAST_IN_DOMAIN_SENTENCE = 1043, 527, "Anson became a muscle bound."


def load_cola(
    source: str = "auto",
    data_dir: str | Path | None = None,
    validation_fraction: float | None = None,
    seed: int = 42,
) -> CorpusSplits:
    """Load CoLA: training rows are in-domain train, validation in-domain dev, test out-of-domain dev.

    Args:
        source: `auto` (the hub where it answers, otherwise the sample), `hub` (nyu-mll/glue, cola) or `sample`.
        data_dir: Folder in the public raw layout: `in_domain_train.tsv`, `in_domain_dev.tsv`, and optionally
            `out_of_domain_dev.tsv`, without which the test rows are those of in-domain dev. Goes with `auto` only.
        validation_fraction: Split this fraction of the training rows off for validation, stratified by class, instead
            of validating on in-domain dev.
        seed: Seed of that split.

    Returns:
        The splits, with columns `sentence`, `label` (0 unacceptable, 1 acceptable) and `source`.

    Raises:
        InputError: Files missing or not in the layout, the hub asked for but not reachable, or arguments that
            contradict one another. A choice that was made is never replaced by another.
    """
    if source not in ("auto", "hub", "sample"):
        raise InputError(f"`dataset` must be auto, hub or sample, got {source}")
    if data_dir is not None and source != "auto":
        raise InputError(f"`data_dir` and `dataset {source}` contradict one another: pass one of them")
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise InputError(f"`validation_fraction` must lie in (0, 1), got {validation_fraction}")
    if source == "hub" and not hub_answers():
        raise InputError(
            f"the hub was asked for but {constants.ENDPOINT} does not answer: pass `data_dir`, or `dataset sample`"
        )
    remarks = []
    if data_dir is not None:
        train, in_domain, out_of_domain = _read_folder(Path(data_dir).expanduser())
        description = f"CoLA in the raw layout from {data_dir}"
        origin = Origin("CoLA", language="en")
    elif source == "sample" or not hub_answers():
        train, in_domain, out_of_domain = _read_folder(SAMPLE_DIR)
        reason = "asked for" if source == "sample" else f"the hub {constants.ENDPOINT} does not answer"
        description = f"the bundled sample ({reason})"
        origin = Origin("sample of bert_toolkit in CoLA's layout", language="en")
        remarks.append(SAMPLE_REMARK)
    else:
        train, in_domain, out_of_domain = _load_hub()
        description = f"CoLA from the hub ({HUB_DATASET}, cola)"
        origin = Origin("CoLA", HUB_DATASET, "cola", "en")
        if out_of_domain is None:
            remarks.append(JOINED_REMARK)
    validation, test = in_domain, in_domain if out_of_domain is None else out_of_domain
    if validation_fraction is not None:
        kept, held_out = split_off_validation(train["sentence"][:], train["label"][:], validation_fraction, seed)
        train, validation = train.select(kept), train.select(held_out)
        tested = (
            "the out-of-domain dev rows; in-domain dev is not used"
            if out_of_domain is not None
            else "the in-domain dev rows"
        )
        remarks.append(f"Validated on {len(held_out)} of the training rows (seed {seed}), tested on {tested}.")
    elif out_of_domain is None:
        remarks.append(NO_TEST_REMARK)
    return CorpusSplits(train, validation, test, list(LABEL_NAMES), "sentence", description, remarks, origin=origin)


def read_cola_file(path: str | Path) -> "Dataset":
    """Read one file of the public raw layout, and refuse it whole at the first line that does not fit.

    Four tab-separated fields per line: source, label (0 or 1), the authors' mark, sentence. There is no header, quote
    characters are text, and the last line may lack its newline.

    Args:
        path: The file, UTF-8.

    Returns:
        A dataset with columns `sentence`, `label` and `source`, in the order of the file.

    Raises:
        InputError: File missing, empty, not UTF-8, a wrong number of fields, another label, an empty sentence (each
            with its line number), or only one class.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    columns: dict[str, list] = {"sentence": [], "label": [], "source": []}
    # Only a newline ends a line: str.splitlines would also split at characters that belong to a sentence
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != 4:
            raise InputError(
                f"{path}:{number} has {len(fields)} tab-separated field{'s' * (len(fields) != 1)}, expected 4: "
                "source, label, mark, sentence"
            )
        source, label, _mark, sentence = fields
        if label not in ("0", "1"):
            raise InputError(f"{path}:{number} has label {label!r}, expected 0 (unacceptable) or 1 (acceptable)")
        if not sentence.strip():
            raise InputError(f"{path}:{number} has an empty sentence")
        for column, value in zip(columns.values(), (sentence, int(label), source), strict=True):
            column.append(value)
    if len(set(columns["label"])) == 1:
        raise InputError(
            f"{path} holds only label {columns['label'][0]}: both acceptable (1) and unacceptable (0) rows are needed"
        )
    return labeled_rows(columns, LABEL_NAMES)


def _read_folder(folder: Path) -> "tuple[Dataset, Dataset, Dataset | None]":
    """In-domain train, in-domain dev, and out-of-domain dev where the folder has it."""
    if not folder.is_dir():
        raise InputError(f"`data_dir` must be a folder with {TRAIN_FILE} and {IN_DOMAIN_FILE}, {folder} is none")
    missing = [name for name in (TRAIN_FILE, IN_DOMAIN_FILE) if not (folder / name).exists()]
    if missing:
        inside = sorted(path.parent for path in folder.glob(f"**/raw/{TRAIN_FILE}"))
        hint = f"; did you mean {inside[0]}?" if inside else ": pass the `raw` folder of the public corpus"
        raise InputError(f"{folder} holds no {' and no '.join(missing)}{hint}")
    out_of_domain = folder / OUT_OF_DOMAIN_FILE
    return (
        read_cola_file(folder / TRAIN_FILE),
        read_cola_file(folder / IN_DOMAIN_FILE),
        read_cola_file(out_of_domain) if out_of_domain.exists() else None,
    )


def _load_hub() -> "tuple[Dataset, Dataset, Dataset | None]":
    """As `_read_folder`. The labels of GLUE's own test rows are hidden."""
    what = f"the hub answered, but {HUB_DATASET} (cola)"
    glue = download(what, "; pass `data_dir` or `dataset sample`", HUB_DATASET, "cola")
    train, dev = (
        labeled_rows(
            {"sentence": rows["sentence"][:], "label": rows["label"][:], "source": ["glue"] * len(rows)}, LABEL_NAMES
        )
        for rows in (glue["train"], glue["validation"])
    )
    border = GLUE_IN_DOMAIN_ROWS
    if len(dev) == GLUE_DEV_ROWS and dev[border - 1]["sentence"].strip() == LAST_IN_DOMAIN_SENTENCE:
        return train, dev.select(range(border)), dev.select(range(border, len(dev)))
    return train, dev, None
