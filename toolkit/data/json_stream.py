"""Stream records from one large JSON text: an object id -> record, or a list of records.

The text is never completely in RAM. The C scanner of the standard library parses one record at a time from a window,
which is extended whenever a record crosses its end.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from toolkit.errors import DataError
from toolkit.identifiers import masked

CHUNK_BYTES = 1 << 22
MAX_RECORD_CHARS = 1 << 26
"""A longer record indicates a corrupt file (a missing quotation mark)."""
LOOK_AHEAD = 1 << 16
"""A parse error this far before the window's end is invalid JSON, not a truncated record."""

PEEK_MEMBERS = 20
_CUT = object()
"""A value that continues after the text of a peek."""

_BLANK = r"[ \t\n\r]*"
_KEY = re.compile(rf'{_BLANK}("(?:[^"\\]|\\.)*"){_BLANK}:{_BLANK}', re.DOTALL)
_NO_KEY = re.compile(_BLANK)
_NESTED = (dict, list)
_START = re.compile(rf"{_BLANK}([{{\[]){_BLANK}")
_LIST = re.compile(rf"(\[{_BLANK}(\])?)?{_BLANK}")
_CLOSING = {"{": "}", "[": "]"}
_NEXT = {"{": re.compile(rf"{_BLANK}([,}}])"), "[": re.compile(rf"{_BLANK}([,\]])")}

Row = Mapping[str, Any]
"""One record that is an object: column -> value, as JSON, CSV or Parquet stores it."""

Record = tuple[str | None, Any, str | None]
"""Id (None if the source has no ids), the parsed record, and its JSON text (None if not available)."""


def stream_json(file: BinaryIO, place: str) -> Iterator[Record]:
    """Yield records of a JSON object id -> record, or of a JSON list (ids are None), in file order.

    ``NaN`` and ``Infinity`` are accepted, and so is a UTF-8 byte order mark. Peak RAM is a few chunks of 4 MB.

    Raises:
        DataError: The text is not UTF-8 or not one JSON object or list. The error has line and column.
    """
    window = _Window(file, place)
    opener, is_empty = window.start()
    if not is_empty:
        yield from _records(window, opener)
    window.finish()


def stream_members(file: BinaryIO, place: str) -> Iterator[tuple[str, Any, str, bool]]:
    """Yield key, value, JSON text, and whether the value is an element, of the members of one JSON object.

    A list is yielded element by element.

    Peak RAM is as for ``stream_json``, however long a list is.

    Raises:
        DataError: As for ``stream_json``.
    """
    window = _Window(file, place)
    opener, is_empty = window.start()
    if opener != "{":
        window.fail_here("data.json_not_object", "the file must be one JSON object")
    separator = "" if is_empty else ","
    while separator == ",":
        key = _key_text(window.take(_KEY, "data.json_key_expected", _KEY_RULE)[1])
        begin = window.take(_LIST, "data.json_invalid", "a value must follow")
        if begin[1] is None:
            value, text = window.value()
            yield key, value, text, False
        elif begin[2] is None:
            yield from ((key, value, text, True) for _, value, text in _records(window, "["))
        separator = window.take(_NEXT["{"], "data.json_comma_expected", _COMMA_RULE)[1]
    window.finish()


def _records(window: "_Window", opener: str) -> Iterator[tuple[str | None, Any, str]]:
    """Yield key, value and text of the items of an object or list, up to and including its closing bracket."""
    key, following = (_KEY if opener == "{" else _NO_KEY), _NEXT[opener]
    decode = json.JSONDecoder().raw_decode
    separator = ","
    while separator == ",":
        text, name = window.text, key.match(window.text, window.at)
        if name is None:
            window.fill(window.at, "data.json_key_expected", _KEY_RULE)
            continue
        begin = name.end()
        try:
            value, end = decode(text, begin)
        except (ValueError, RecursionError) as error:
            window.fill_after(error, begin)
            continue
        after = following.match(text, end)
        if after is None:
            window.fill(end, "data.json_comma_expected", _COMMA_RULE)
            continue
        window.at, separator = after.end(), after[1]
        yield (_key_text(name[1]) if opener == "{" else None), value, text[begin:end]


def peek_members(text: str) -> dict[str, Any]:
    """Return the first members of the start of a JSON object: key -> value. A list has only its first elements.

    Invalid JSON, or the end of ``text``, ends the members without an error. Another text has none.

    >>> peek_members('{"info": 1, "images": [{"id": 1}, {"id"')
    {'info': 1, 'images': [{'id': 1}]}
    """
    start, members = _START.match(text), dict[str, Any]()
    if start is None or start[1] != "{":
        return members
    at = start.end()
    while len(members) < PEEK_MEMBERS and (key := _KEY.match(text, at)) is not None:
        value, end = _peek_value(text, key.end())
        if value is not _CUT:
            members[_key_text(key[1])] = value
        if end is None or (after := _NEXT["{"].match(text, end)) is None:
            break
        at = after.end()
    return members


def _peek_value(text: str, begin: int) -> tuple[Any, int | None]:
    """Return a value and its end, which is None if the text ends within the value."""
    decode = json.JSONDecoder().raw_decode
    opener = _START.match(text, begin)
    try:
        if opener is None or opener[1] == "{":
            return decode(text, begin)
    except (ValueError, RecursionError):
        return _CUT, None
    elements, at = list[Any](), opener.end()
    if text.startswith("]", at):
        return elements, at + 1
    while True:
        try:
            element, end = decode(text, at)
        except (ValueError, RecursionError):
            return elements, None
        if len(elements) < PEEK_MEMBERS:
            elements.append(element)
        if (after := _NEXT["["].match(text, end)) is None:
            return elements, None
        if after[1] == "]":
            return elements, after.end()
        at = after.end()
        at = at if (blank := _NO_KEY.match(text, at)) is None else blank.end()


class KeyRepeated(ValueError):
    """An object that has a key twice with different values. The message has the key."""


def checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object from its keys and values (``object_pairs_hook`` of ``json.loads``).

    >>> checked_object([("answer", "no"), ("answer", "no")])
    {'answer': 'no'}

    Raises:
        KeyRepeated: A key has two different values. Parsing keeps only the last one.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                raise KeyRepeated(f"{key} twice")
    return found


def repeated_key(text: str, record: Row) -> str | None:
    """Return which key a record has twice with different values. Parsing keeps only the last one.

    A comparison of counts shows that nearly all records have none, which is much faster than another parse.

    >>> repeated_key('{"answer": "no", "answer": "yes"}', {"answer": "yes"})
    'answer twice'
    """
    count = text.count('":')
    if count == len(record) or count == _count_keys(record):
        return None
    try:
        json.loads(text, object_pairs_hook=checked_object)
    except KeyRepeated as error:
        return str(error)
    return None


def _count_keys(value: Any) -> int:
    """Return the number of keys of all objects in a value, which may be nested deeply."""
    keys, left = 0, [value]
    while left:
        part = left.pop()
        is_object = isinstance(part, dict)
        keys += len(part) if is_object else 0
        left += [one for one in (part.values() if is_object else part) if type(one) in _NESTED]
    return keys


SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of .xlsx and .ods, which are zip archives, and of .xls."""


def conversion(content: bytes) -> str:
    """Return the remedy for the start of a file that is not UTF-8.

    UTF-16 and UTF-32 are certain by their byte order mark, or by a NUL beside each ASCII character.
    """
    if content.startswith(SPREADSHEETS):
        return "This is a spreadsheet or an archive. Save the sheet as CSV UTF-8, or correct the suffix of the file."
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "Convert it with: iconv -f UTF-32 -t UTF-8."
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "Convert it with: iconv -f UTF-16 -t UTF-8."
    if b"\0" in content[:2]:
        order = "BE" if content.startswith(b"\0") else "LE"
        return f"Convert it with: iconv -f UTF-16{order} -t UTF-8."
    return "Convert it from its encoding, such as that of Western Europe: iconv -f CP1252 -t UTF-8."


def around(error: UnicodeDecodeError) -> str:
    """Return the byte that is not UTF-8 with the masked text around it, such as ``xxxxxxxxx,x\\xed``."""
    start = max(error.start - 20, 0)
    before, after = (masked(part.decode("ascii", "ignore")) for part in _parts_around(error, start))
    return before + error.object[error.start : error.start + 1].decode("ascii", "backslashreplace") + after


def _parts_around(error: UnicodeDecodeError, start: int) -> tuple[bytes, bytes]:
    return error.object[start : error.start], error.object[error.start + 1 : error.start + 20]


def _key_text(quoted: str) -> str:
    return str(json.loads(quoted)) if "\\" in quoted else quoted[1:-1]


class _Window:
    """The part of the text in RAM. ``at`` is the start of the next record."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file, self._place = file, place
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._bytes, self._lines, self._column = 0, 0, 0
        self._ended = False
        self.text, self.at = "", 0
        self._read()
        self.text = self.text.removeprefix("\ufeff")

    def start(self) -> tuple[str, bool]:
        """Return the opening bracket, and whether the closing bracket follows directly."""
        while (found := _START.match(self.text)) is None or (found.end() == len(self.text) and not self._ended):
            rule = "the file must be one JSON object (id -> record) or one list of records"
            self.fill(0, "data.json_not_records", rule)
        is_empty = self.text.startswith(_CLOSING[found[1]], found.end())
        self.at = found.end() + is_empty
        return found[1], is_empty

    def take(self, pattern: re.Pattern[str], code: str, rule: str) -> re.Match[str]:
        """Return the match of a pattern at ``at``, and move behind it."""
        while (found := pattern.match(self.text, self.at)) is None or self._is_at_end(found.end()):
            self.fill(self.at, code, rule)
        self.at = found.end()
        return found

    def value(self) -> tuple[Any, str]:
        """Return the value at ``at`` with its text, and move behind it."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                self.fill_after(error, self.at)
                continue
            if self._is_at_end(end):  # a number can continue
                self._read()
                continue
            text, self.at = self.text[self.at : end], end
            return value, text

    def fail_here(self, code: str, rule: str) -> NoReturn:
        """Raise an error with the place of ``at``."""
        self._fail(self.at, code, rule)

    def finish(self) -> None:
        """Check that only blanks follow."""
        while True:
            if rest := self.text[self.at :].lstrip(" \t\n\r"):
                self._fail(len(self.text) - len(rest), "data.json_text_after_end", _AFTER, _LINES)
            if self._ended:
                return
            self._read()

    def fill(self, failed_at: int, code: str, rule: str) -> None:
        """Read on if a record was truncated at the window's end. Raise if the text is invalid."""
        if self._ended or len(self.text) - failed_at > LOOK_AHEAD:
            self._fail(failed_at, code, rule)
        self._read()

    def fill_after(self, error: ValueError | RecursionError, begin: int) -> None:
        """As ``fill``, for a record that raised a parse error."""
        if isinstance(error, RecursionError):
            self._fail(begin, "data.json_nested_too_deeply", "a record must not be nested deeper than Python can read")
        if not isinstance(error, json.JSONDecodeError):
            self._fail(begin, "data.json_not_readable", f"a record must be readable: {error}")
        elif error.msg.startswith("Unterminated string") and not self._ended:
            if len(self.text) - begin > MAX_RECORD_CHARS:
                rule, remedy = "a record must have at most 64 million characters", "Look for a missing quotation mark."
                self._fail(error.pos, "data.json_record_too_long", rule, remedy)
            self._read()
        else:
            self.fill(error.pos, "data.json_invalid", f"the JSON must be valid: {error.msg}")

    def _is_at_end(self, at: int) -> bool:
        return at == len(self.text) and not self._ended

    def _read(self) -> None:
        """Drop the text before ``at`` and append a chunk."""
        chunk = self._file.read(CHUNK_BYTES)
        try:
            more = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise DataError(
                "data.not_utf8",
                "the file must be UTF-8",
                place=f"{self._place}, near byte {self._bytes + error.start:,}",
                value=around(error),
                remedy=conversion(error.object),
            ) from None
        self._bytes += len(chunk)
        self._ended = not chunk
        self._lines, self._column = self._position(self.at)
        self.text, self.at = self.text[self.at :] + more, 0

    def _position(self, at: int) -> tuple[int, int]:
        """Return line and column of an offset in the window, both from 0."""
        newline = self.text.rfind("\n", 0, at)
        if newline < 0:
            return self._lines, self._column + at
        return self._lines + self.text.count("\n", 0, at), at - newline - 1

    def _fail(self, at: int, code: str, rule: str, remedy: str = "Correct the file.") -> NoReturn:
        line, column = self._position(at)
        place = f"{self._place}, line {line + 1:,}, column {column + 1:,}"
        found = masked(self.text[at : at + 40])
        raise DataError(code, rule, place=place, value=found or "the end of the file", remedy=remedy)


_KEY_RULE = "a key in quotation marks and a colon must follow"
_COMMA_RULE = "a comma or the closing bracket must follow"
_AFTER = "nothing must follow the closing bracket"
_LINES = "Write each record on one line of a .jsonl file, or all records into one list."
