"""Seeded damage to files: the same (target, number) always gives the same damaged input."""

import bz2
import gzip
import json
from collections.abc import Callable
from random import Random

# What parsers stumble over: ends of lines that are none, quotes, broken encodings, names of nothing, numbers too large
TOKENS = [
    *(b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[31m"),
    *(b'"', b'""', b"'", b"\\", b"\r", b"\n", b"\r\n", b"\n\n", b"\x0b", b"\x0c", b"\xe2\x80\xa8", b"\xc2\x85"),
    *(b",", b"\t", b";", b"|", b"{", b"}", b"[", b"]", b":", b"<", b"&", b"%s", b"{0}", b"$x_{$"),
    *(b"NaN", b"Infinity", b"-1e999", b"1e39", b"1_0", b"null", b"true", b"None", b"-0", b"0x1", b"9" * 5000),
    *(b'"\\ud800"', b"\\u0000", b'{"a": 1}', b"[[1]]", b"[" * 3000, b" " * 50, b"a" * 140_000),
    *(b"!!python/object/apply:os.abort []", b"&a [*a]", b"cos\nsystem\n(S'exit 3'\ntR."),
    *(b"[0, 1, 0]", b"['a', 'b']", b"0|1|1", b"0,5", b"1.0", b"01", b"TRUE", b"nan", b"N/A", b"-", b"e\xcc\x81"),
    *(b"True,False", b"{a,b}", b"0/1/0", b"1e0", b"-0.0", b"yes", b"010", b"10\xc2\xa0000", b"B-", b"# a = b\n"),
    *(b"\n\xef\xbb\xbf", b' "x"', b"\nsep =;\n", b"\r\r\n", b"\x1f\x8b\x08", b"PAR1", b"|", b"[1]"),
    *(
        "\u200b".encode(),
        "好吗？是的。".encode(),
        "Да. Нет!".encode(),
        "नहीं। हाँ".encode(),
        "１ ＮＡ — ı İ".encode(),
        "བཀྲ། Բարեւ: ok.[1] Ok".encode(),
        "😀".encode(),
        b"...!?" * 40_000,
    ),
]
VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        3,
        2**70,
        1.5,
        -0.0,
        1e300,
        float("nan"),
        float("-inf"),
        "",
        " ",
        "1",
        "\ud800",
        "a\u0085b",
    ),
    *("x" * 5000, [], [[]], [1], [None], ["a", "b"], ["\udfff"], {}, {"a": 1}, [{"text": "a"}]),
    *(
        [0, 1, 0],
        [1.0, 0.0],
        [True, False],
        ["0", "1"],
        [0.5, 0.5],
        [2, 2],
        "[0, 1]",
        "0 1 0",
        "1.0",
        "NaN",
        "cafe\u0301",
        ["yes", "no", "no"],
        ["1e0", "0", "１"],
        [-0.0, 1.0],
        "{a,b}",
        "N.A.",
        "B-PER",
    ),
]


def flip_bits(content: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        if damaged:
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def replace_byte(content: bytes, random: Random) -> bytes:
    position = random.randrange(len(content) + 1)
    return content[:position] + bytes([random.randrange(256)]) + content[position + 1 :]


def truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def cut_out(content: bytes, random: Random) -> bytes:
    start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[min(end, start + random.choice([1, 4, 64, len(content)])) :]


def insert_token(content: bytes, random: Random) -> bytes:
    position = random.randrange(len(content) + 1)
    return content[:position] + random.choice(TOKENS) + content[position:]


def insert_noise(content: bytes, random: Random) -> bytes:
    position = random.randrange(len(content) + 1)
    return content[:position] + random.randbytes(random.choice([1, 3, 20])) + content[position:]


def repeat_part(content: bytes, random: Random) -> bytes:
    start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[start:end] * random.choice([1, 1, 3]) + content[end:]


def damage_line(content: bytes, random: Random) -> bytes:
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    damage = random.randrange(4)
    if damage == 0:
        del lines[number]
    elif damage == 1:
        lines.insert(number, lines[number])
    elif damage == 2:
        other = random.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    else:
        lines[number] = b""
    return b"\n".join(lines)


def damage_field(content: bytes, random: Random) -> bytes:
    """Deletes, doubles, empties or replaces one field of one line, whatever separates fields here."""
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    mark = random.choice([mark for mark in (b",", b"\t", b":", b" ") if mark in lines[number]] or [b","])
    fields = lines[number].split(mark)
    position = random.randrange(len(fields))
    fields[position : position + 1] = random.choice([[], [fields[position]] * 2, [b""], [random.choice(TOKENS)]])
    lines[number] = mark.join(fields)
    return b"\n".join(lines)


def damage_json_value(content: bytes, random: Random) -> bytes:
    """Replaces, removes or renames one value of one object, so that the file is still JSON."""
    lines = content.split(b"\n")
    number = random.randrange(len(lines))
    for part, put in (
        (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
        (content, bytes),
    ):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        row = value[random.randrange(len(value))] if isinstance(value, list) and value else value
        if isinstance(row, dict) and row:
            name = random.choice(list(row))
            if random.random() < 0.2:
                row[random.choice(["", "text", "a\u2028b", "label"])] = row.pop(name)
            elif random.random() < 0.1:
                del row[name]
            else:
                row[name] = random.choice(VALUES)
            return put(json.dumps(value).encode())
    return insert_token(content, random)


def change_encoding(content: bytes, random: Random) -> bytes:
    encoding = random.choice(["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "shift_jis"])
    return content.decode("utf-8", errors="replace").encode(encoding, errors="replace")


def change_dress(content: bytes, random: Random) -> bytes:
    """What systems and programs do to a file as a whole: other line ends, packing, lists instead of lines."""
    change = random.randrange(6)
    if change == 0:
        return content.replace(b"\n", b"\r\n")
    if change == 1:
        return content.replace(b"\n", b"\r")
    if change == 2:
        return random.choice([gzip.compress, bz2.compress])(content)
    if change == 3:
        return b"sep=" + random.choice([b",", b"\t", b";", b"", b"::"]) + b"\n" + content
    if change == 4:
        return b"[" + content.replace(b"\n", b",\n") + b"]"
    return content.replace(b", ", b"\n").strip(b"[]")


MUTATIONS: list[Callable[[bytes, Random], bytes]] = [
    flip_bits,
    replace_byte,
    truncate,
    cut_out,
    insert_token,
    insert_token,
    insert_noise,
    repeat_part,
    damage_line,
    damage_field,
    damage_field,
    damage_json_value,
    damage_json_value,
    change_encoding,
    change_dress,
]


def mutate(content: bytes, random: Random) -> bytes:
    """Damages a file's content in one to four ways.

    Args:
        content: A valid file.
        random: Decides how; nothing else does.
    """
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        content = random.choice(MUTATIONS)(content, random)
    return content
