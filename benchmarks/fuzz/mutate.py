"""Damage and malice: a valid file changed in its bytes, in the tree of values that it holds, or in its table."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rankwise.compare.directory import _digest

_DEEP = "deep%d"  # stands for so many brackets, which no recursive writer could write
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**63, 2**64),
    *(10**300, 10**400, "", " ", "0", "1e400", "9" * 5000, "a" * 3000, "\0", "\ud800", "a\nb\tc", "\u202e\u2028"),
    *("..", "../../x", "/etc/passwd", ".", "a/b", "nul", "=1+1", "</script>", "[bold]", "(a+)+$", "[", "embedded"),
    *("true", "none", "float32", "rank", "docmatch", "instruction", "2001-99-99", "!!python/name:os.system"),
    *([], {}, [[]], [None], [0], ["a", 1], {"a": {}}, {"": None}, _DEEP % 40, _DEEP % 200, _DEEP % 3000),
)
_TOKENS = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b'""', b"'", b"\n", b"\r", b"\r\n", b",", b"\t", b"\\", b"\\ud800", b"{"),
    *(b"[", b"]", b"}", b":", b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"[" * 2000, b"\xe2\x80\xa8"),
    *(b"text", b"label", b"../", b"&a [x, x]", b"*a", b"<<: ", b"!!python/object/apply:os.system ['x']", b"!!set {a}"),
    *(b"2001-99-99", b"!!int ''", b"0x", b"0b", b"!!binary 'x'", b"? ", b"- ", b"# ", b"%YAML 9.9\n---\n", b"\x85"),
)

_MOST_BRACKETS = 1000


def mutated(content: bytes, form: str, draw: Random) -> bytes:
    """One change or several; `form` says how the file is read."""
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        if draw.random() < 0.7:
            try:
                content = _FORMS[form](content, draw)
            # What was damaged before may hold no values any more.
            except Exception:
                content = _of_bytes(content, draw)
        else:
            content = _of_bytes(content, draw)
    return content[:200_000]


def _of_bytes(content: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    end = min(len(content), at + draw.choice((1, 1, 2, 8, 64, 512)))
    kind = draw.randrange(6)
    if kind == 0 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + content[end:]
    if kind == 2:
        return content[:at] + content[at:end] * draw.choice((2, 3, 30)) + content[end:]
    if kind == 3:
        return content[:at]
    if kind == 4:
        return content[:at] + draw.randbytes(end - at) + content[end:]
    return content[:at] + draw.choice(_TOKENS) + content[draw.choice((at, end)) :]


def _of_lines(content: bytes, draw: Random) -> bytes:
    """Cells of a delimited file, or lines of a text."""
    parts = re.split(rb"([\n,\t])", content)
    at = draw.randrange(len(parts))
    kind = draw.randrange(4)
    if kind == 0:
        parts[at] = draw.choice(_TOKENS)
    elif kind == 1:
        parts[at] = str(draw.choice(_VALUES)).encode("utf-8", "surrogatepass")
    elif kind == 2:
        del parts[at]
    else:
        parts[at : at + 1] = [parts[at], draw.choice(parts)]
    return b"".join(parts)


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(inner for key, value in items for inner in _paths(value, (*path, key)))]


def _of_tree(tree: Any, draw: Random) -> Any:
    """A value changed, left out, doubled or moved, somewhere in a tree."""
    paths = _paths(tree)
    *way, last = draw.choice(paths) or (None,)
    if last is None:
        return draw.choice(_VALUES)
    holder = tree
    for key in way:
        holder = holder[key]
    kind = draw.randrange(5)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(draw.choice(_VALUES))] = holder.pop(last) if draw.random() < 0.5 else holder[last]
    elif kind == 1:
        holder.insert(last, holder[last])
    elif kind == 2:
        other = draw.choice(paths)
        value = tree
        for key in other:
            value = value[key]
        holder[last] = json.loads(json.dumps(value))
    else:
        holder[last] = draw.choice(_VALUES)
    return tree


def _json(tree: Any) -> bytes:
    text = json.dumps(tree)
    return re.sub(r'"deep(\d+)"', lambda deep: "[" * int(deep[1]) + "]" * int(deep[1]), text).encode()


def _of_json(content: bytes, draw: Random) -> bytes:
    return _json(_of_tree(json.loads(content), draw))


def _of_json_lines(content: bytes, draw: Random) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = _of_json(lines[at], draw)
    return b"\n".join(lines) + b"\n"


def _of_journal(content: bytes, draw: Random) -> bytes:
    """As JSON lines, with the checksum that the change has: whoever means harm can compute it."""
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    event = json.loads(lines[at])
    event.pop("crc32", None)
    event = _of_tree(event, draw)
    if isinstance(event, dict):
        event["crc32"] = zlib.crc32(json.dumps(event).encode())
    lines[at] = _json(event)
    return b"\n".join(lines) + b"\n"


def _of_yaml(content: bytes, draw: Random) -> bytes:
    if content.count(b"[") + content.count(b"{") > _MOST_BRACKETS:
        raise ValueError("to read it would take the square of that")
    text = yaml.dump(_of_tree(yaml.load(content, yaml.CSafeLoader), draw), Dumper=yaml.CSafeDumper)
    return re.sub(r"deep(\d+)", lambda deep: "[" * int(deep[1]) + "]" * int(deep[1]), text).encode()


def _of_safetensors(content: bytes, draw: Random) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + size], content[8 + size :]
    header = _of_json(header, draw)
    told = draw.choice((len(header),) * 8 + (0, len(header) - 1, len(header) + 1, 2**60, 2**63, 99_999_999))
    return struct.pack("<Q", told) + header + draw.choice((body, body, body, body[:-1], body + b"\0"))


_COLUMNS: tuple[Callable[[int], pa.Array], ...] = (
    lambda rows: pa.nulls(rows),
    lambda rows: pa.array([1] * rows),
    lambda rows: pa.array([float("nan")] * rows),
    lambda rows: pa.array([b"\xff\0"] * rows),
    lambda rows: pa.array([["a", None]] * rows),
    lambda rows: pa.array([{"role": "user", "content": None}] * rows),
    lambda rows: pa.array([[{"role": "assistant", "content": "a"}]] * rows),
    lambda rows: pa.array([2**62] * rows, pa.timestamp("ns")),
    lambda rows: pa.array([-(2**62)] * rows, pa.timestamp("s")),
    lambda rows: pa.array([2**40] * rows, pa.date64()),
    lambda rows: pa.array([2**62] * rows, pa.duration("s")),
    lambda rows: pa.array(["a"] * rows).dictionary_encode(),
    lambda rows: pa.array([True] * rows),
    lambda rows: pa.array(["\0\u202e</script>"] * rows, pa.large_string()),
    lambda rows: pa.array([1e300] * rows),
    lambda rows: pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
)


def _of_parquet(content: bytes, draw: Random) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    kind = draw.randrange(5)
    name = draw.choice(table.column_names)
    at = table.column_names.index(name)
    if kind == 0:
        table = table.set_column(at, name, draw.choice(_COLUMNS)(len(table)))
    elif kind == 1:
        table = table.drop_columns([name])
    elif kind == 2:
        names = list(table.column_names)
        names[at] = draw.choice((*names, "", "\0", "../x", "=1+1"))
        table = table.rename_columns(names)
    elif kind == 3:
        table = table.slice(0, draw.randrange(len(table) + 1))
    else:
        metadata = dict(table.schema.metadata or {b"huggingface": b'{"info": {"features": {}}}'})
        key = draw.choice(sorted(metadata))
        metadata[key] = _of_json(metadata[key], draw)
        table = table.replace_schema_metadata(metadata)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _of_figures(content: bytes, draw: Random) -> bytes:
    """As a Parquet table of ours, with the digest that the change has."""
    table = pd.read_parquet(io.BytesIO(_of_parquet(content, draw)))
    table.attrs["sha256"] = _digest(table)
    out = io.BytesIO()
    table.to_parquet(out)
    return out.getvalue()


_FORMS: dict[str, Callable[[bytes, Random], bytes]] = {
    "lines": _of_lines,
    "json": _of_json,
    "json lines": _of_json_lines,
    "journal": _of_journal,
    "yaml": _of_yaml,
    "safetensors": _of_safetensors,
    "parquet": _of_parquet,
    "figures": _of_figures,
}
