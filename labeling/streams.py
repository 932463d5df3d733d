"""Text files as people bring them: gzip, byte order mark and CRLF undone, UTF-8 checked, sizes capped, flat memory."""

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from django.utils.translation import gettext as _

from labeling.errors import LabelingError

CHUNK = 1 << 18
LONGEST_LINE = 1_000_000
GZIP_MAGIC = b"\x1f\x8b"  # no UTF-8 text begins with these bytes, so a misnamed gzip file is read all the same
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class ImportFailed(LabelingError):
    """A file that cannot come in: which file, which line where one is to blame, why. Nothing of it was stored."""


def failed(name: str, reason: str, line: int | None = None) -> ImportFailed:
    if line is None:
        return ImportFailed(_("%(name)s: %(reason)s") % {"name": name, "reason": reason})
    return ImportFailed(_("%(name)s line %(line)d: %(reason)s") % {"name": name, "line": line, "reason": reason})


def read_bytes(path: Path, name: str, limit: int) -> Iterator[bytes]:
    """The file's bytes, unpacked. What it unpacks to is counted as it comes, so a bomb stops at the limit."""
    size = 0
    try:
        if not path.is_file():
            raise failed(name, _("there is no such file."))
        with path.open("rb") as raw:
            stream = _unpacked(raw, name)
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise failed(
                        name,
                        _("it is larger than %(limit)d MB: split it into several files.") % {"limit": limit // 10**6},
                    )
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise failed(name, _("the gzip file is damaged or cut off: pack it again.")) from None
    except OSError as error:
        raise failed(name, _("it cannot be read (%(reason)s).") % {"reason": error.strerror or error}) from None


def _unpacked(raw: BinaryIO, name: str) -> BinaryIO:
    start = raw.read(2)
    raw.seek(0)
    if start == GZIP_MAGIC:
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if start and name.lower().endswith(".gz"):
        raise failed(name, _("it is named .gz, but it is not a gzip file: remove the ending or pack it."))
    return raw


def read_text(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    """The same text without byte order mark and with LF line ends; wrong bytes are named by offset and line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, carry, begun = 0, 1, "", False
    for chunk, last in _marking_the_last(chunks):
        try:
            text = decoder.decode(chunk, last)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, name, offset + len(chunk), line) from None
        offset += len(chunk)
        if text and not begun:
            text, begun = text.removeprefix("\ufeff"), True
        text = carry + text
        carry = "\r" if text.endswith("\r") and not last else ""  # its \n may come with the next chunk
        text = text.removesuffix(carry).replace("\r\n", "\n")
        if "\0" in text:
            here = line + text[: text.index("\0")].count("\n")
            raise failed(name, _("it holds a zero byte, which no text does: save it as UTF-8 text."), here)
        line += text.count("\n")
        if text:
            yield text


def _marking_the_last(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def _not_utf8(error: UnicodeDecodeError, name: str, read: int, line: int) -> ImportFailed:
    """`read` counts the bytes up to the end of the decoder's buffer, `line` is where that buffer begins."""
    buffer = error.object
    place = read - len(buffer) + error.start
    if place == 0 and buffer[:2] in UTF16_MARKS:
        return failed(name, _("it is UTF-16: save it as UTF-8."), 1)
    reason = _("byte %(place)d (0x%(byte)s) is not UTF-8: save the file as UTF-8.") % {
        "place": place,
        "byte": f"{buffer[error.start]:02X}",
    }
    return failed(name, reason, line + buffer[: error.start].count(b"\n"))


def read_lines(texts: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines from 1. Only \\n ends a line: JSON texts may hold U+2028 and its kin as they are."""
    number, pending = 0, ""
    for text in texts:
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            number += 1
            yield number, _not_too_long(line, number, name)
        _not_too_long(pending, number + 1, name)
    if pending:
        yield number + 1, pending


def _not_too_long(line: str, number: int, name: str) -> str:
    if len(line) > LONGEST_LINE:
        reason = _("it is longer than %(most)d characters: a file of rows has one JSON object a line.")
        raise failed(name, reason % {"most": LONGEST_LINE}, number)
    return line
