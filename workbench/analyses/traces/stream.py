"""A JSON file that is never held whole: values are decoded one after the other.

Plain or gzip, told by its first bytes. The text goes through a buffer of about a megabyte.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from workbench.analyses.traces.events import Number
from workbench.errors import BadInputError
from workbench.progress import CancelToken

CHUNK = 1 << 20  # bytes
MAX_VALUE = 32 << 20  # characters of one event
AGAIN = "Record it again with torch.profiler and export_chrome_trace."
SPACE = re.compile(r"[ \t\r\n]*")
BETWEEN = re.compile(r"[ \t\r\n,]*")  # old traces have a comma after the last event


class JsonStream:
    """The text of one file and a place in it. Use as a context."""

    def __init__(self, path: Path, name: str, max_bytes: int | None, token: CancelToken) -> None:
        self.name = name
        self.token = token
        self.max_bytes = max_bytes
        self.n_bytes = 0  # of the JSON text so far
        self.file_bytes = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
        self._check_magic(magic)
        self._raw: IO[bytes] = path.open("rb")
        self._is_gzip = magic[:2] == b"\x1f\x8b"
        self._file: IO[bytes] = gzip.GzipFile(fileobj=self._raw) if self._is_gzip else self._raw  # type: ignore[assignment]
        self._text = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._decode = json.JSONDecoder(
            strict=False, parse_float=Number, parse_constant=Number
        ).raw_decode
        self._buffer = ""
        self._at = 0
        self._is_over = False

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    @property
    def done_bytes(self) -> int:
        """How far in the file itself."""
        return min(self._raw.tell(), self.file_bytes)

    def fault(self, what: str) -> BadInputError:
        return BadInputError(f"{self.name} {what}")

    def _check_magic(self, magic: bytes) -> None:
        if not magic:
            raise self.fault(f"is empty. {AGAIN}")
        if magic[:2] == b"PK":
            raise self.fault("is a zip archive. Unpack it and bring the .json or .json.gz inside.")
        if magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise self.fault("is UTF-16 text. A trace is JSON in UTF-8, plain or gzip.")

    def _fill(self) -> bool:
        """More text behind what is not yet read; False at the end of the file."""
        if self._is_over:
            return False
        self.token.check()
        try:
            data = self._file.read(CHUNK)
        except EOFError:
            raise self.fault(
                f"is cut off: its gzip data ends in the middle, after {self.n_bytes:,} bytes of "
                "text. Copy it again, whole."
            ) from None
        except (OSError, zlib.error) as error:
            raise self.fault(
                f"cannot be read after {self.n_bytes:,} bytes of text: {error}. Copy it again."
            ) from None
        self.n_bytes += len(data)
        if self.max_bytes is not None and self.n_bytes > self.max_bytes:
            raise self.fault(
                f"holds more than {self.max_bytes:,} bytes of text, the most that is read here. "
                "Record fewer steps, or raise the limit."
            )
        self._is_over = not data
        self._buffer = self._buffer[self._at :] + self._text.decode(data, final=self._is_over)
        self._at = 0
        return True

    def peek(self, skip: re.Pattern[str] = SPACE) -> str:
        """The next character that counts; "" at the end of the file."""
        while True:
            found = skip.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._fill():
                return ""

    def take(self, character: str, where: str) -> None:
        found = self.peek()
        if found != character:
            raise self._cut_or_wrong(found, f"{character!r} was expected {where}")
        self._at += 1

    def value(self, where: str) -> Any:
        """Decode the value at this place."""
        if not self.peek():
            raise self._cut_or_wrong("", "")
        wanted = CHUNK
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # Away from the buffer's end it is not the cut that is wrong. An open text is told
                # by its first character.
                is_inside = error.pos < len(self._buffer) - 16
                if is_inside and not error.msg.startswith("Unterminated"):
                    raise self._wrong(error.msg, error.pos, where) from None
                if len(self._buffer) - self._at > MAX_VALUE:
                    raise self.fault(
                        f"holds one value of more than {MAX_VALUE >> 20} MB {where}: no trace of "
                        f"torch.profiler. {AGAIN}"
                    ) from None
                if self._is_over:
                    raise self._cut_or_wrong("", "") from None
                # Twice as much each time, or one long value would be decoded over and over.
                while len(self._buffer) - self._at < wanted and self._fill():
                    pass
                self._fill()
                wanted *= 2
            except RecursionError:
                raise self.fault(
                    f"nests its values too deeply {where}: no trace of torch.profiler. {AGAIN}"
                ) from None
            except ValueError as error:  # a whole number of thousands of digits
                raise self.fault(f"holds a number that cannot be read {where}: {error}.") from None
            else:
                if end == len(self._buffer) and not self._is_over:
                    self._fill()  # a number may go on
                    continue
                self._at = end
                return value

    def pairs(self) -> Iterator[str]:
        """Keys of the object at this place; read each value before the next key."""
        self.take("{", "at its beginning")
        while (found := self.peek(BETWEEN)) != "}":
            if found != '"':
                raise self._cut_or_wrong(found, "a key in quotes was expected")
            key = self.value("in a key")
            self.take(":", f"after the key {str(key)[:40]!r}")
            yield key
        self._at += 1

    def items(self) -> Iterator[Any]:
        """Values of the array at this place."""
        self.take("[", "where the events begin")
        n = 0
        while True:
            found = self.peek(BETWEEN)
            if found == "]":
                self._at += 1
                return
            if not found:
                raise self._cut_or_wrong("", "")
            yield self.value(f"in event {n + 1:,}")
            n += 1

    def _cut_or_wrong(self, found: str, what: str) -> BadInputError:
        if found:
            return self._wrong(what, self._at, "")
        return self.fault(
            f"is cut off: it ends after {self.n_bytes:,} bytes, in the middle of its JSON. Copy it "
            "again, whole, or wait until it is written."
        )

    def _wrong(self, what: str, at: int, where: str) -> BadInputError:
        near = self._buffer[max(at - 20, 0) : at + 20].replace("\n", " ")
        place = f" {where}" if where else ""
        return self.fault(f"is no valid JSON{place}: {what}, near {near!r}. {AGAIN}")
