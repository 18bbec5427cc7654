"""Random damage to bytes, JSON and files. Each function takes a random.Random and is determined by its state."""

import json
import pathlib
import random
from typing import Any

# Values that a field of a JSON file does not expect.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, 10**30,
    2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63),
    "", "x", "0", "-1", "NaN", "true", "None", "../../x", "/dev/zero", "\0", "\n", "\u202e", "\ud800", "%s%n", "{{",
    "<s>", "a" * 5000, [], [[]], [None], ["x", "x"], [0] * 5000, {}, {"": {}}, {"x": [{}]},
)  # fmt: skip
_PIECES = (
    b"",
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x80" * 12,
    b"0",
    b"-1",
    b"9" * 40,
    b"{",
    b"[",
    b'"',
    b"\n",
    b"\\u0000",
)


def damage_bytes(data: bytes, draw: random.Random, low: int = 0, high: int | None = None) -> bytes:
    """Returns bytes with one to four changes between `low` and `high`: bits flipped, or a piece omitted, repeated,
    moved, overwritten, inserted or cut off with all that follows."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        last = min(len(data), len(data) if high is None else high)
        start, end = sorted(draw.randint(min(low, last), last) for _ in range(2))
        end = min(end, start + draw.choice((1, 4, 64, len(data))))
        match draw.randrange(8):
            case 0 | 1:
                if start < len(data):
                    data = data[:start] + bytes([data[start] ^ (1 << draw.randrange(8))]) + data[start + 1 :]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:]
            case 4:
                data = data[:start] + draw.randbytes(end - start) + data[end:]
            case 5:
                data = data[:start] + draw.choice(_PIECES) + data[end:]
            case 6:
                data = data[:start] + draw.choice(_PIECES) * draw.choice((1, 1, 100)) + data[start:]
            case 7:
                data = data[:start]
    return data


def damage_json(value: Any, draw: random.Random) -> Any:
    """Returns a copy of a JSON value with one to three changes: a value replaced by a hostile or a neighbouring one,
    removed, repeated or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return draw.choice(HOSTILE)
        parent, key = draw.choice(places)
        match draw.randrange(8):
            case 0 | 1 | 2 | 3:
                parent[key] = draw.choice(HOSTILE)
            case 4:
                other, name = draw.choice(places)
                parent[key] = json.loads(json.dumps(other[name]))
            case 5:
                del parent[key]
            case 6 if isinstance(parent, dict):
                parent[draw.choice(("", "x", key + "s", "__class__", "\n"))] = parent.pop(key)
            case 6:
                parent.insert(key, parent[key])
            case 7:
                if isinstance(number := parent[key], int | float) and not isinstance(number, bool):
                    parent[key] = draw.choice(
                        (-number, number + 1, number - 1, number * 1000, float(number), str(number))
                    )
                else:
                    parent[key] = [parent[key]]
    return value


def _places(value: Any):
    """Yields the container and the key of each value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def damage_json_file(path: pathlib.Path, draw: random.Random) -> str:
    """Damages a JSON file, mostly its values, sometimes its bytes."""
    if draw.random() < 0.75:
        try:
            path.write_text(json.dumps(damage_json(json.loads(path.read_bytes()), draw)))
            return f"{path.name}: values"
        except (ValueError, UnicodeEncodeError):  # It is not JSON any more, by an earlier change.
            pass
    path.write_bytes(damage_bytes(path.read_bytes(), draw))
    return f"{path.name}: bytes"


def damage_file(path: pathlib.Path, draw: random.Random) -> str:
    """Damages a file: as JSON if its name ends with .json, otherwise its bytes."""
    if path.suffix == ".json":
        return damage_json_file(path, draw)
    path.write_bytes(damage_bytes(path.read_bytes(), draw))
    return f"{path.name}: bytes"


def damage_one(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages one file of a folder, of every file with the same probability; rarely removes or empties it, or puts a
    folder, a link to nothing or a link to itself in its place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = draw.choice(files)
    match draw.randrange(40):
        case 0:
            path.unlink()
            return f"{path.name}: removed"
        case 1:
            path.write_bytes(b"")
            return f"{path.name}: emptied"
        case 2:
            path.unlink()
            path.mkdir()
            return f"{path.name}: a folder"
        case 3:
            path.unlink()
            path.symlink_to(draw.choice(("nowhere", path.name)))
            return f"{path.name}: a link"
    return damage_file(path, draw)
