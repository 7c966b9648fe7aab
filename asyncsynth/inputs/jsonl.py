"""Lazy readers of input rows. One line is in memory at a time, never the whole file or data set.

A row is what JSON makes of it: values that would change silently on the way through the journal (NaN, lone
surrogates, integers over 64 bits) are refused here, with the place named.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import orjson

from asyncsynth.errors import InputError
from asyncsynth.inputs.json_rows import explain_unjsonable
from asyncsynth.inputs.reader import BadRowPolicy, Reader
from asyncsynth.records import MAX_DEPTH, Row

MAX_LINE_BYTES = 64 << 20  #: a longer line is taken for a file that is not JSON Lines

#: Integers of 19 digits or more may not fit into 64 bits; orjson would round them to floats. They are looked for
#: in the line with all digits made 0 and all brackets [ (a regular expression takes 12 times as long).
_LONG_NUMBER = b"0" * 19
_SHAPE = bytes.maketrans(b"123456789{", b"000000000[")
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_GZIP_MAGIC = b"\x1f\x8b"
_COUNTED_BYTES = 256 << 20
_COUNT_BUFFER = 4 << 20
_READ_BUFFER = 1 << 18


class JsonlReader(Reader):
    """JSON Lines: one object a line in UTF-8, plain or gzip. A byte-order mark and blank lines are skipped.

    Raises InputError with file and line for whatever is not that.
    """

    kind = "jsonl"
    path: Path

    def __init__(
        self,
        path: str | Path,
        *,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        rename: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, rename=rename)
        self.path: Path = Path(path)
        self.name: str = self.path.name
        self._lines: int | None = None

    def _open(self) -> IO[bytes]:
        try:
            mode = self.path.stat().st_mode
            if not stat.S_ISREG(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                raise self._error(
                    f"is {what}; a JSON Lines file was expected",
                    hint="Name one file. A pipe cannot be read again on resume: save it to a file first.",
                )
            file = io.BufferedReader(io.FileIO(self.path), _READ_BUFFER)
        except FileNotFoundError:
            raise self._error(
                "does not exist; a JSON Lines file was expected",
                hint=f"Check the path; it is taken relative to {Path.cwd()}.",
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise self._error(
                f"cannot be read ({error}); a JSON Lines file was expected",
                hint="Check its path and permissions.",
            ) from error
        if file.peek(2)[:2] == _GZIP_MAGIC:
            return cast(IO[bytes], _GzipFile(file))
        return file

    def size_hint(self) -> int | None:
        """The number of lines: counted in the first 256 MiB (some 0.1 s), estimated beyond; None for gzip."""
        if self._lines is None:
            self._lines = self._count()
        return self._lines if self._lines >= 0 else None

    def _count(self) -> int:
        lines = read = 0
        last = b"\n"
        try:
            with self._open() as file:
                if isinstance(file, _GzipFile):
                    return -1
                while read < _COUNTED_BYTES and (chunk := file.read(_COUNT_BUFFER)):
                    read += len(chunk)
                    last = chunk[-1:]
                    # Cheaper than `chunk.count`, which looks at each byte; this finds newlines with memchr.
                    lines += len(io.BytesIO(chunk).readlines()) - (last != b"\n")
                size = os.fstat(file.fileno()).st_size
        except (OSError, InputError):
            return -1  # told when the rows are read
        return lines + (last != b"\n") if read >= size else round(lines * size / read)

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        with self._open() as file:
            while line := self._readline(file, number + 1):
                number += 1
                if number == 1:
                    line = self._after_bom(line)
                if not line.isspace() and line:
                    yield number, line

    def _readline(self, file: IO[bytes], number: int) -> bytes:
        try:
            line = file.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
            raise self._error(
                f"reading stopped here ({error}); more of the file was expected",
                number,
                hint="The file is cut short or damaged: copy it again. Rows before this line are fine.",
            ) from error
        if len(line) > MAX_LINE_BYTES:
            raise self._error(
                f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; one JSON object a line was expected",
                number,
                hint="Is this a JSON Lines file? A JSON array can be converted with `jq -c '.[]'`.",
            )
        return line

    def _after_bom(self, line: bytes) -> bytes:
        if encoding := _BOMS.get(line[:2]):
            raise self._error(
                f"the file is {encoding}; UTF-8 was expected",
                1,
                hint=f"Convert it: iconv -f {encoding.lower()} -t utf-8 {self.path} > converted.jsonl",
            )
        return line.removeprefix(b"\xef\xbb\xbf")

    def _row(self, number: int, content: bytes) -> Row:
        try:
            row = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise self._explain(number, content, error) from None
        if not isinstance(row, dict):
            hint = 'Write each row as {"column": value, ...} on a line of its own.'
            if isinstance(row, list) or content.lstrip()[:1] == b"[":
                hint = "Convert a JSON array with `jq -c '.[]' file.json > file.jsonl`."
            raise self._error(f"is {_json_type(row)}; a JSON object was expected", number, hint=hint)
        for value in row.values():
            if type(value) is not str:  # only then are there numbers, or anything nested
                shape = content.translate(_SHAPE)
                if _LONG_NUMBER in shape or shape.count(b"[") > MAX_DEPTH:
                    self._look_closely(number, content)
                break
        return row

    def _look_closely(self, number: int, content: bytes) -> None:
        """Refuses what orjson reads but rounds (long integers) or cannot write again (deep nesting)."""
        try:
            found = explain_unjsonable(json.loads(content))
        except RecursionError:
            found = ("the row", f"nested more than {MAX_DEPTH} levels deep")
        if found:
            raise self._refused(number, *found)

    def _refused(self, number: int, place: str, what: str) -> InputError:
        return self._error(
            f"{place} is {what}, which JSON cannot carry unchanged; a plain JSON value was expected",
            number,
            column=place,
            hint="Write it as a string, or leave it out.",
        )

    def _explain(self, number: int, content: bytes, error: orjson.JSONDecodeError) -> InputError:
        """Why orjson refused the line, in words that help to mend it."""
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as bad:
            return self._error(
                f"is not UTF-8: byte {content[bad.start : bad.end][:1]!r} at offset {bad.start} of the line; "
                "UTF-8 text was expected",
                number,
                hint=f"Convert the file: iconv -f latin1 -t utf-8 {self.path} > converted.jsonl",
            )
        try:
            if found := explain_unjsonable(json.loads(text)):
                return self._refused(number, *found)
        except (ValueError, RecursionError):
            pass
        hint = (
            f"Fix or remove the line (`sed -n {number}p {self.path}` shows it), then run again with --update: what is "
            'done is kept. Or let such lines fail alone: LoadJSONL(..., on_bad_row="skip").'
        )
        if text.strip() == "[":
            hint = "This looks like a JSON array: convert it with `jq -c '.[]' file.json > file.jsonl`."
        elif text.strip() == "{":
            hint = "This looks like JSON over several lines: convert it with `jq -c . in.json > out.jsonl`."
        return self._error(
            f"is not JSON ({error.msg} at column {error.colno}); one JSON object a line was expected",
            number,
            hint=hint,
        )

    def _chunks(self) -> Iterator[bytes]:
        with self._open() as file:
            try:
                while chunk := file.read(1 << 16):
                    yield chunk
            except (OSError, EOFError, zlib.error):
                return  # told with its line when the rows are read

    def _error(self, message: str, number: int | None = None, *, hint: str, column: str = "") -> InputError:
        return InputError(message, path=str(self.path), line=number, column=column, hint=hint)


class _GzipFile(gzip.GzipFile):
    """A gzip reader that closes the file under it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._under = file

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._under.close()


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
