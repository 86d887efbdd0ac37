"""How the name of a class may be written: what is one name, what only looks like one, and what stands for no label."""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal

from bert_toolkit.data.tables import brief, shown

MISSING = (
    "- -- ? ?? nan NaN NAN -nan NA N/A N.A. n/a n.a. #N/A #NA @NA <NA> <na> null Null NULL (null) <null> <NULL> None "
    "<none> NaT \\N '' \"\" #NULL! #VALUE! #REF! #DIV/0! #NAME? 1.#QNAN 1.#IND -1.#IND"
)
"""What programs write where a label is missing."""
_MISSING = frozenset(["", *MISSING.split()])
PERHAPS_MISSING = (
    ". .. ... * ** # _ __ --- ---- na nil nan none missing undefined (blank) (none) (missing) -9 -99 -999 -9999"
)
"""What people write there, in lower case, and what can be the name of a class too."""
_PERHAPS_MISSING = frozenset(PERHAPS_MISSING.split())

# the name of a class that is a number; 007 is a code and none
NUMERIC_NAME = re.compile(r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[-+]?\d{1,2})?", re.ASCII | re.IGNORECASE)
_PLAIN_MARKS = str.maketrans("’‘“”–—−", "''\"\"---")
_LATIN_TWINS = str.maketrans("аеорсухіјѕοıİ", "aeopcyxijsoii")  # Cyrillic, Greek and Turkish, in lower case
_GROUPED_DIGITS = re.compile(r"(?<=\d)[,\s'](?=\d{3}(?!\d))")
_ZEROS_AND_ONES = re.compile(r"[01]{2,}")


def class_name(label: str) -> str:
    """Return one name for all spellings of it: numbers without needless digits, composed characters, single spaces.

    Args:
        label: As it stands in a file.

    Examples:
        >>> [class_name(label) for label in ("1.0", "+1", "1e0", "01", " New  York ")]
        ['1', '1', '1', '01', 'New York']
    """
    name = " ".join(unicodedata.normalize("NFC", label).split())
    if not NUMERIC_NAME.fullmatch(name) or len(name) > 40:
        return name
    # exact, as no number of 40 characters with an exponent of two digits has more digits
    number = Decimal(name).normalize(Context(prec=200))
    return f"{number:f}" if number else "0"


def marks_missing(name: str) -> bool:
    """Return whether a name is what programs write where there is no label, whatever the width of its characters.

    Args:
        name: Of `class_name`.
    """
    return name in _MISSING or _plain(name) in _MISSING


def likeness(name: str) -> str:
    """Return what a name shares with those that look like it to a person: other case, width, hyphens or zeros.

    Args:
        name: Of `class_name`.
    """
    plain = _plain(html.unescape(name)).casefold().replace("i\u0307", "i").translate(_LATIN_TWINS)
    plain = _GROUPED_DIGITS.sub("", plain.strip(" .,:;'\"`"))
    plain = re.sub(r"(?<=[^\W\d_])[-_\s]+(?=[^\W\d_])", "", plain)
    plain = {"true": "1", "false": "0"}.get(plain, plain)
    return plain.lstrip("0") or "0" if plain.isdecimal() else plain


def _plain(name: str) -> str:
    """In characters of usual width, ASCII digits, hyphens and quotes, without what is not seen."""
    plain = unicodedata.normalize("NFKC", name).translate(_PLAIN_MARKS)
    seen = (c for c in plain if unicodedata.category(c) not in ("Cf", "Cc"))
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in seen).strip()


def remarks_on_names(written: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return what a reader must know of the spellings of classes.

    Args:
        written: Labels as they stand in the file.
        names: Of the classes.

    Returns:
        Sentences on spellings that were merged, on names that look alike, may mark missing labels, or may be several
        labels in one.
    """
    spellings: dict[str, list[str]] = {}
    for label in {" ".join(label.split()) for label in written}:
        spellings.setdefault(class_name(label), []).append(label)
    # in ASCII, as the spellings of one accented letter look the same
    merged = [
        f"{', '.join(map(ascii, sorted(each)))} as {brief(name)}" for name, each in spellings.items() if each[1:]
    ]
    twins: dict[str, list[str]] = {}
    for name in names:
        twins.setdefault(likeness(name), []).append(name)
    alike = [shown(each) for each in twins.values() if each[1:]]
    joined = [
        f"{brief(name)} with `label_separator {mark}`"
        for mark in ",;|/+&"
        for name in names
        if mark in name and {part.strip() for part in name.split(mark)} < set(names)
    ]
    joined += [
        f"{brief(name)} with `label_separator ' '`"
        for name in names
        if name.replace(" ", "").isdecimal() and " " in name and not set(names).isdisjoint(name.split())
    ]
    missing = [brief(name) for name in names if _plain(name).casefold() in _PERHAPS_MISSING]
    if "-1" in names and {"0", "1", "2"} <= set(names):
        missing.append("'-1'")
    codes = [brief(name) for name in names if _ZEROS_AND_ONES.fullmatch(name)]
    are_marks = len(codes) == len(names) and len(set(map(len, codes))) == 1 and min(names)[0] == "0"
    return [
        f"{remark}: {'; '.join(sorted(found))}."
        for remark, found in (
            ("Labels of several spellings were taken for one class", merged),
            ("Classes that look alike may be one", alike),
            ("Classes that name other classes may be several labels in one cell", joined),
            ("Classes whose names may mark a missing label", missing),
            ("Classes that may be a 0 or 1 for each of several labels", codes if are_marks else []),
        )
        if found
    ]
