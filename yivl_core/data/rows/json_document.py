r"""A large JSON document, looked at through a window: where each value ends, in memory that does not depend on the document.

Knows values and the white space between them; what lists and objects are made of is `json_items.py`'s. A value that is longer
than allowed is passed over without being held or checked.
"""

import codecs
import json
import re
from typing import IO

from yivl_core.data.findings import error, row_too_long
from yivl_core.data.rows.compression import read_up_to_damage
from yivl_core.data.rows.raw_row import MAX_KEPT_CHARS, RawRow
from yivl_core.data.rows.strict_json import JsonSyntaxError, StrictJsonReader, skip_white_space

_BLOCK_BYTES = 1 << 18
_NUM_CHARS_AT_CUT = 2 * len(r"\uD83D")  # of what tells of an error where the window ends, and none may be
_NUM_CHARS_OF_EXPONENT = len("e+")  # which are not read as part of a number unless a digit follows
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_SIGN = re.compile(r'["\[\]{}]')
_SIGN_IN_STRING = re.compile(r'["\\]')
_BEHIND_SCALAR = re.compile(r"[,\]}\s]")


class BrokenDocumentError(Exception):
    """Reading cannot go on.

    Attributes:
        row: what to tell the user.
    """

    def __init__(self, row: RawRow) -> None:
        super().__init__()
        self.row = row


def broken(line: int, kind: str, message: str, remedy: str, text: str = "") -> BrokenDocumentError:
    """Something in this line is not JSON."""
    finding = error(kind, f"{message}; nothing behind it was read", remedy)
    return BrokenDocumentError(RawRow(line=line, text=_storable(text), findings=[finding]))


class JsonDocument:
    """A window of text that slides over a file, and a place in it.

    Bytes that are not UTF-8 stand in the text as single surrogates, which UTF-8 cannot hold, and so come out as they went in.

    Args:
        file: the document, behind a byte order mark if it has one.
        max_bytes: longest value that is read.
    """

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file, self._max_bytes = file, max_bytes
        self._to_text = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._raw_decode = json.JSONDecoder(parse_int=float).raw_decode  # `int` refuses thousands of digits
        self._text, self._position, self._is_at_end = "", 0, False
        self._line, self._counted = 1, 0

    @property
    def line(self) -> int:
        """The line of the place, from 1."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._position = skip_white_space(self._text, self._position)
            if self._position < len(self._text) or self._is_at_end:
                return self._text[self._position : self._position + 1]
            self._read_on()

    def take(self) -> None:
        """Go on behind the character that `peek` gave."""
        self._position += 1

    def take_comma(self) -> bool:
        """Go on behind the next comma, if one comes before anything else."""
        match = _COMMA.match(self._text, self._position)
        if match is not None and match.end() < len(self._text):
            self._position = match.end()
            return True
        if self.peek() != ",":
            return False
        self.take()
        self.peek()
        return True

    def text_ahead(self, num_chars: int) -> str:
        """Some of what follows."""
        return self._text[self._position : self._position + num_chars]

    def read_item(self) -> RawRow:
        """The value that starts at the place, which is not white space."""
        line = self.line
        end = self._find_end()
        if end is None:
            return self._pass_over(line)
        start, self._position = self._position, end  # which reading on has moved
        data = self._text[start:end].encode(errors="surrogateescape")
        if len(data) > self._max_bytes:
            return self._too_long(line, self._text[start : start + MAX_KEPT_CHARS])
        return RawRow(line, "", data, None, (), len(data))  # by place, which is faster: this is done for each item

    def read_name(self) -> str:
        """The name of the next field, and the colon behind it."""
        self.peek()
        row = self.read_item()
        try:
            name = StrictJsonReader().read_all((row.json or b"").decode())[0]
        except (JsonSyntaxError, UnicodeDecodeError):
            name = None
        if not isinstance(name, str) or self.peek() != ":":
            message = 'a field of an object has to be "NAME": VALUE'
            raise broken(self.line, "invalid_json", message, 'write {"name": [...], ...}')
        self.take()
        self.peek()
        return name

    def skip_value(self) -> None:
        """Go on behind the value that starts at the place."""
        end = self._find_end()
        if end is None:
            self._pass_over(self.line)
        else:
            self._position = end

    def _find_end(self) -> int | None:
        """The index behind the value at the place; None where it is too long to be looked at as a whole."""
        while True:
            try:
                end = self._raw_decode(self._text, self._position)[1]
                if end + _NUM_CHARS_OF_EXPONENT < len(self._text) or self._is_at_end:
                    return end
            except json.JSONDecodeError as cause:
                if self._is_at_end or not _may_be_cut_off(cause):
                    raise self._no_json() from cause
            except RecursionError as cause:
                raise self._no_json() from cause
            if len(self._text) - self._position > self._max_bytes:
                return None
            self._read_on()

    def _no_json(self) -> BrokenDocumentError:
        """What the strict reader has to say of the value at the place."""
        text = self._text[self._position :]  # so that characters are counted from its start
        position = 0
        try:
            finding = StrictJsonReader().read(text)[2][0]  # nested so deep that the one gave up and the other just not
        except JsonSyntaxError as cause:
            finding, position = cause.finding, cause.position
        line = self.line
        message = f"{finding.message}, in what starts on line {line}"
        remedy = "write the items of the list as JSON objects"
        return broken(line + text.count("\n", 0, position), finding.kind, message, remedy, text[:MAX_KEPT_CHARS])

    def _pass_over(self, line: int) -> RawRow:
        """Go on behind a value of any length, without holding it."""
        kept = self.text_ahead(MAX_KEPT_CHARS)
        if self.text_ahead(1) in tuple('"[{'):
            self._pass_over_brackets(line)
        else:  # a number
            while (match := _BEHIND_SCALAR.search(self._text, self._position)) is None and not self._is_at_end:
                self._position = len(self._text)
                self._read_on()
            self._position = len(self._text) if match is None else match.start()
        return self._too_long(line, kept)

    def _pass_over_brackets(self, line: int) -> None:
        depth, is_in_string = 0, False
        while True:
            sign = (_SIGN_IN_STRING if is_in_string else _SIGN).search(self._text, self._position)
            if sign is None:
                self._position = len(self._text)
                if self._is_at_end:
                    message = "a string, list or object that starts here has no end"
                    raise broken(line, "invalid_json", message, "write the file again")
                self._read_on()
                continue
            self._position = sign.end()
            if sign.group() == "\\":
                self._pass_over_escaped()
            elif sign.group() == '"':
                is_in_string = not is_in_string
            else:
                depth += 1 if sign.group() in "[{" else -1
            if not depth and not is_in_string:
                return

    def _pass_over_escaped(self) -> None:
        if self._position == len(self._text) and not self._is_at_end:
            self._read_on()
        self._position += 1

    def _too_long(self, line: int, kept: str) -> RawRow:
        return RawRow(line=line, text=_storable(kept), findings=[row_too_long(self._max_bytes)])

    def _read_on(self) -> None:
        """Drop what lies before the place and add a block, twice as much where a long value is cut off."""
        data = read_up_to_damage(self._file.read, max(_BLOCK_BYTES, len(self._text) - self._position))
        self._line, self._counted = self.line, 0
        self._text = self._text[self._position :] + self._to_text.decode(data, final=not data)
        self._position = 0
        self._is_at_end = not data


def _may_be_cut_off(cause: json.JSONDecodeError) -> bool:
    """Whether a value that cannot be read may go on behind the window."""
    return cause.pos + _NUM_CHARS_AT_CUT >= len(cause.doc) or cause.msg.startswith("Unterminated string")


def _storable(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")[:MAX_KEPT_CHARS]
