"""Readers: what they take, what they refuse and in which words, and that they never hold the whole input."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsynth.errors import InputError
from asyncsynth.inputs.dicts import DictsReader
from asyncsynth.inputs.json_rows import explain_unjsonable, to_json_row
from asyncsynth.inputs.jsonl import MAX_LINE_BYTES, JsonlReader
from asyncsynth.inputs.reader import BadRow, SourceRow

GOOD = b'{"instruction":"one"}\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        return path

    return write


Write = Callable[[bytes], Path]


def rows(reader: JsonlReader | DictsReader) -> list[dict[str, Any]]:
    return [item.row for item in reader if isinstance(item, SourceRow)]


# --- what is taken ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (b'{"a":1}\n{"a":2}\n', [1, 2]),
        (b'{"a":1}\n{"a":2}', [1, 2]),  # no newline at the end
        (b'{"a":1}\r\n{"a":2}\r\n', [1, 2]),
        (b'\xef\xbb\xbf{"a":1}\n{"a":2}\n', [1, 2]),  # byte-order mark
        (b'\n{"a":1}\n  \n\r\n{"a":2}\n\n', [2, 5]),  # blank lines keep the numbering
        (b'\xef\xbb\xbf\n{"a":1}\n{"a":2}', [2, 3]),
    ],
)
def test_reads_lines(write: Write, content: bytes, numbers: list[int]) -> None:
    read = list(JsonlReader(write(content)))
    assert read == [SourceRow(numbers[0], None, {"a": 1}), SourceRow(numbers[1], None, {"a": 2})]


def test_values_come_unchanged(write: Write) -> None:
    line = '{"s":"Grüße 🎈\\u2028\\u0000","i":[18446744073709551615,-9223372036854775808],"f":-0.5,"n":null}'
    [row] = rows(JsonlReader(write(line.encode())))
    assert row == {"s": "Grüße 🎈\u2028\0", "i": [2**64 - 1, -(2**63)], "f": -0.5, "n": None}


def test_a_line_of_a_megabyte(write: Write) -> None:
    [row] = rows(JsonlReader(write(b'{"text":"' + b"x" * (1 << 20) + b'"}\n')))
    assert len(row["text"]) == 1 << 20


def test_gzip_by_content_not_by_name(write: Write) -> None:
    assert rows(JsonlReader(write(gzip.compress(GOOD * 3)))) == [{"instruction": "one"}] * 3


def test_reads_again_from_the_start(write: Write) -> None:
    reader = JsonlReader(write(GOOD * 2))
    assert reader.columns() == ("instruction",)
    next(iter(reader))
    assert len(rows(reader)) == len(rows(reader)) == 2


def test_ids(write: Write) -> None:
    reader = JsonlReader(write(b'{"id":"a","x":1}\n{"id":7,"x":2}\n'), id_column="id")
    assert [item.key for item in reader if isinstance(item, SourceRow)] == ["a", "7"]


def test_rename(write: Write) -> None:
    reader = JsonlReader(write(b'{"id":"k","prompt":"p"}'), id_column="id", rename={"prompt": "instruction"})
    assert list(reader) == [SourceRow(1, "k", {"id": "k", "instruction": "p"})]
    with pytest.raises(InputError, match="two columns named 'id'"):
        list(JsonlReader(write(b'{"id":"k","prompt":"p"}'), rename={"prompt": "id"}))


# --- what is refused -------------------------------------------------------------------------------

BAD_LINES = {
    "malformed": (b'{"a": tru}', "is not JSON", "one JSON object a line was expected"),
    "cut": (b'{"a": "x', "is not JSON", "one JSON object a line was expected"),
    "control character": (b'{"a": "x\x01"}', "is not JSON", "one JSON object a line was expected"),
    "array": (b'[{"a":1}]', "is an array", "jq -c"),
    "array over lines": (b"[", "is not JSON", "JSON array"),
    "object over lines": (b"{", "is not JSON", "over several lines"),
    "null": (b"null", "is null", "a JSON object was expected"),
    "number": (b"3", "is a number", "a JSON object was expected"),
    "boolean": (b"true", "is a boolean", "a JSON object was expected"),
    "string": (b'"x"', "is a string", "a JSON object was expected"),
    "latin-1": (b'{"a": "caf\xe9"}', "not UTF-8: byte b'\\xe9' at offset 10", "iconv"),
    "surrogate as bytes": (b'{"a": "\xed\xa0\x80"}', "not UTF-8", "UTF-8 text was expected"),
    "surrogate escaped": (b'{"a": ["x", "\\ud800"]}', "a[1] is text with a lone surrogate", "leave it out"),
    "NaN": (b'{"a": {"b": NaN}}', "a.b is NaN", "plain JSON value was expected"),
    "infinity": (b'{"a": -Infinity}', "a is -inf", "plain JSON value was expected"),
    "too large a float": (b'{"a": 1e400}', "a is inf", "plain JSON value was expected"),
    "65 bits": (b'{"a": 18446744073709551616}', "a is an integer over 64 bits", "Write it as a string"),
    "-65 bits": (b'{"a": -9223372036854775809}', "a is an integer over 64 bits", "Write it as a string"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "number is infinity", "Fix or remove"),
    "deep": (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "nested more than 200", "leave it out"),
    "very deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not JSON", "depth limit"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line(write: Write, name: str) -> None:
    line, what, expected = BAD_LINES[name]
    path = write(GOOD + b"\n" + line + b"\n" + GOOD)
    reader = iter(JsonlReader(path))
    assert next(reader) == SourceRow(1, None, {"instruction": "one"})
    with pytest.raises(InputError) as caught:
        next(reader)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert what in str(caught.value)
    assert expected in str(caught.value)
    assert "expected" in caught.value.message
    assert caught.value.hint
    assert len(str(caught.value)) < 1000
    skipping = list(JsonlReader(path, on_bad_row="skip"))
    assert [type(item) for item in skipping] == [SourceRow, BadRow, SourceRow]
    assert isinstance(skipping[1], BadRow)
    assert skipping[1].number == 3
    assert what in skipping[1].message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"Id": "a"}', "no id column 'id'; its columns are 'Id'"),
        (b"{}", "its columns are none"),
        (b'{"id": null}', "the id 'id' is null"),
        (b'{"id": true}', "the id 'id' is true"),
        (b'{"id": 1.5}', "the id 'id' is 1.5"),
        (b'{"id": ""}', "the id 'id' is \"\""),
        (b'{"id": ["' + b"x" * 500 + b'"]}', "the id 'id' is [\"xxx"),
    ],
)
def test_bad_id(write: Write, line: bytes, what: str) -> None:
    with pytest.raises(InputError) as caught:
        list(JsonlReader(write(line), id_column="id"))
    assert what in caught.value.message
    assert (caught.value.line, caught.value.column) == (1, "id")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf", gzip.compress(b"")])
def test_empty_file(write: Write, content: bytes) -> None:
    path = write(content)
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(InputError, match="holds no rows; at least one was expected") as caught:
            list(JsonlReader(path, on_bad_row=on_bad_row))  # type: ignore[arg-type]
        assert str(path) in str(caught.value)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory; a JSON Lines file was expected"):
        list(JsonlReader(tmp_path))
    with pytest.raises(InputError, match=r"missing\.jsonl: does not exist"):
        list(JsonlReader(tmp_path / "missing.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        list(JsonlReader(tmp_path / "rows\0.jsonl"))
    with pytest.raises(InputError, match="not a regular file"):
        list(JsonlReader("/dev/null"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16(write: Write, encoding: str) -> None:
    with pytest.raises(InputError, match="1: the file is UTF-16; UTF-8 was expected"):
        list(JsonlReader(write('\ufeff{"a": 1}\n'.encode(encoding))))


def test_truncated_gzip_gives_what_is_whole_then_stops(write: Write) -> None:
    lines = b"".join(b'{"n":%d,"x":"%s"}\n' % (n, str(hash(n * n)).encode() * 9) for n in range(5000))
    path = write(gzip.compress(lines)[:-3000])
    good = 0
    reader = iter(JsonlReader(path, on_bad_row="skip"))
    with pytest.raises(InputError, match="reading stopped here") as caught:  # noqa: PT012 - counts until then
        while next(reader):
            good += 1
    assert good > 1000
    assert caught.value.line == good + 1
    assert "cut short" in caught.value.hint


def test_damaged_gzip(write: Write) -> None:
    packed = bytearray(gzip.compress(GOOD * 100))
    packed[14] ^= 0xFF
    with pytest.raises(InputError, match="reading stopped here"):
        list(JsonlReader(write(bytes(packed))))


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_LINE_BYTES * 4)  # sparse: takes no room
    tracemalloc.start()
    with pytest.raises(InputError, match="1: the line is longer than 64 MiB"):
        list(JsonlReader(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_LINE_BYTES * 2.5


def test_skip_with_only_bad_rows(write: Write) -> None:
    reader = JsonlReader(write(b"nope\n"), on_bad_row="skip")
    assert [type(item) for item in reader] == [BadRow]
    with pytest.raises(InputError, match="holds no usable row"):
        reader.columns()


def test_policy_is_checked() -> None:
    with pytest.raises(InputError, match="on_bad_row"):
        DictsReader([], on_bad_row="ignore")  # type: ignore[arg-type]


# --- lazy ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("packed", "count"), [(False, 200_000), (True, 40_000)])
def test_memory_is_flat(tmp_path: Path, packed: bool, count: int) -> None:
    path = tmp_path / "rows.jsonl"
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as file:
        for start in range(0, count, 1000):
            file.write(b"".join(b'{"id":%d,"text":"%0100d"}\n' % (n, n) for n in range(start, start + 1000)))
    reader = iter(JsonlReader(path, id_column="id"))
    for _ in range(100):
        next(reader)
    tracemalloc.start()
    seen = 100 + sum(1 for _ in reader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == count
    assert peak < 512 * 1024


def test_dicts_are_pulled_one_by_one() -> None:
    pulled = []

    def generate() -> Any:
        for number in range(10):
            pulled.append(number)
            yield {"n": number}

    reader = iter(DictsReader(generate))
    next(reader)
    next(reader)
    assert pulled == [0, 1]


def test_size_hint(write: Write) -> None:
    assert JsonlReader(write(GOOD * 3)).size_hint() == 3
    assert JsonlReader(write(GOOD * 3 + GOOD.strip())).size_hint() == 4
    assert JsonlReader(write(GOOD + b'{"a": "' + b"x" * 2_000_000 + b'"}\n' + GOOD * 300_000)).size_hint() == 300_002
    assert JsonlReader(write(gzip.compress(GOOD))).size_hint() is None
    assert JsonlReader("missing.jsonl").size_hint() is None
    assert DictsReader([{"a": 1}] * 5).size_hint() == 5
    assert DictsReader(iter([{"a": 1}])).size_hint() is None


# --- identity --------------------------------------------------------------------------------------


def test_identity_and_extension(write: Write) -> None:
    old = JsonlReader(write(GOOD * 10)).identity()
    assert old["kind"] == "jsonl"
    assert old["name"] == "rows.jsonl"
    assert old["head_bytes"] == len(GOOD) * 10
    assert JsonlReader(write(GOOD * 10)).extends(old)
    assert JsonlReader(write(GOOD * 11)).extends(old)
    assert not JsonlReader(write(GOOD * 9)).extends(old)
    assert not JsonlReader(write(GOOD * 9 + b'{"instruction":"two"}\n')).extends(old)
    assert not DictsReader([{"instruction": "one"}] * 10).extends(old)
    packed = JsonlReader(write(gzip.compress(GOOD * 10)))
    assert packed.extends(old), "the same rows, packed"


def test_identity_reads_the_head_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(GOOD)
        file.truncate(5 << 30)
    assert JsonlReader(path).identity()["head_bytes"] == 1 << 20


def test_identity_of_dicts() -> None:
    data = [{"a": n} for n in range(5)]
    old = DictsReader(data).identity()
    assert DictsReader([*data, {"a": 5}]).extends(old)
    assert DictsReader(lambda: iter(data)).extends(old)
    assert not DictsReader(data[:4]).extends(old)
    assert not DictsReader(data[::-1]).extends(old)


# --- dicts -----------------------------------------------------------------------------------------


def test_dicts_are_copied() -> None:
    given = {"messages": [{"role": "user"}], "pair": (1, 2)}
    [row] = rows(DictsReader([given]))
    row["messages"][0]["role"] = "changed"
    assert given["messages"][0]["role"] == "user"
    assert row["pair"] == [1, 2]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"a": float("nan")}, "a is NaN"),
        ({"a": [None, float("inf")]}, "a[1] is inf"),
        ({"a": "\ud83d"}, "a is text with a lone surrogate"),
        ({"a": {"\udc00": 1}}, "a is a mapping with the key '\\udc00'"),
        ({"a": {1: 2}}, "a is a mapping with the key 1"),
        ({"a": 1 << 64}, "a is an integer over 64 bits"),
        ({"a": {"b": b"bytes"}}, "a.b is of type bytes"),
        ({"a": object()}, "a is of type object"),
        ({1: "x"}, "the row is a mapping with the key 1"),
        ("text", "is str; a dict was expected"),
        (None, "is NoneType; a dict was expected"),
    ],
)
def test_bad_dict(row: Any, what: str) -> None:
    with pytest.raises(InputError) as caught:
        list(DictsReader([{"a": 1}, row]))
    assert caught.value.message.startswith("data[1]: ")
    assert what in caught.value.message
    assert "expected" in caught.value.message
    assert caught.value.hint
    skipped = list(DictsReader([{"a": 1}, row], on_bad_row="skip"))
    assert [type(item) for item in skipped] == [SourceRow, BadRow]


def test_a_row_that_contains_itself() -> None:
    row: dict[str, Any] = {"a": []}
    row["a"].append(row)
    with pytest.raises(InputError, match="nested more than 200"):
        list(DictsReader([row]))


@pytest.mark.parametrize("data", ["text", b"x", {"instruction": ["a"]}, 5, None])
def test_data_of_a_wrong_type(data: Any) -> None:
    with pytest.raises(InputError, match="a list \\(or other iterable\\) of dicts was expected"):
        DictsReader(data)


def test_no_dicts() -> None:
    with pytest.raises(InputError, match="data: holds no rows"):
        list(DictsReader([]))
    with pytest.raises(InputError, match="data: holds no rows"):
        DictsReader(iter([])).columns()


def test_rows_whose_making_fails_are_told_with_the_place() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"x": 1}
        raise RuntimeError("the well is dry")

    for data in (rows, rows()):
        with pytest.raises(InputError, match=r"data\[1\]: RuntimeError: the well is dry \(.*test_jsonl\.py:\d+\)"):
            list(DictsReader(data))


def test_an_iterator_is_read_once() -> None:
    reader = DictsReader(iter([{"a": 1}, {"a": 2}]), rename={"a": "b"})
    assert reader.columns() == reader.columns() == ("b",)
    assert reader.identity()["head_bytes"] == 0
    assert rows(reader) == [{"b": 1}, {"b": 2}]
    with pytest.raises(InputError, match="an iterator that was read already"):
        rows(reader)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_a_row_comes_back_the_same_or_is_refused(row: dict[str, Any]) -> None:
    found = explain_unjsonable(row)
    if found is None:
        assert to_json_row(row) == row
    else:
        with pytest.raises(TypeError):
            to_json_row(row)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_an_input_error(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert all(isinstance(item, SourceRow) for item in JsonlReader(path))
