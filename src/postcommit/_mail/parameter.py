"""Parameters of Content-Type and Content-Disposition (RFC 2045, 5.1; RFC 2231)."""
from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import encode_rfc2231
from urllib.parse import unquote_to_bytes

from postcommit._mail.encodedword import MAX_WORD
from postcommit._mail.encodedword import Word


# Text between two semicolons. It can have others in quotation marks.
_PIECE = re.compile(r'(?:[^";]|"(?:[^"\\]|\\.)*+"?)++')
_PARAMETER = re.compile(
    r"[ \t]*([^ \t=*]+)(?:\*(\d{1,6}))?(\*)?[ \t]*=[ \t]*(.*)", re.DOTALL
)
_QUOTED_PAIR = re.compile(r'\\(["\\])')
_COMMENT = re.compile(r"\([^()]*\)")
_EXTENDED = re.compile(r"([^']*)'[^']*'(.*)", re.DOTALL)

# A piece of percent-encoded text. It ends between two characters.
_SECTION = re.compile(r".{1,50}(?<!%)(?<!%.)(?=\Z|[^%]|%[0-7C-F])")

# Parameters whose values can have spaces and parentheses without quotation marks.
_FREE_TEXT = ("name", "filename")

Decode = Callable[[bytes], str]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter, or one section of a parameter that has several (RFC 2231, 3).

    `raw` is how it is written. `value` is without quotation marks and comments, and
    percent-encoded if `is_extended`. A plain parameter has the section -1.
    """

    raw: str
    name: str
    section: int
    is_extended: bool
    value: str

    @property
    def is_foreign(self) -> bool:
        return not self.raw.isascii() or len(self.raw) > MAX_WORD


def raw_parameter(value: str, name: str) -> bytes:
    """Return the parameter `name` of a field's `value`, ``b""`` if it is missing.

    `value` has a surrogate (PEP 383) for each byte that is not ASCII.
    """
    _, parameters = _parsed(value)
    return _joined([one for one in parameters if one.name == name])[1]


def with_parameter(value: str, name: str, content: bytes) -> str:
    """Return a field's `value`, folded, in which the parameter `name` is `content`."""
    main, parameters = _parsed(value)
    others = [one.raw for one in parameters if one.name != name]
    return ";\r\n ".join([main, *others, f'{name}="{content.decode("ascii")}"'])


def words_with_parameters(value: bytes, decode: Decode) -> list[Word]:
    """Return the words of a parameter field's `value` with ASCII characters only.

    Parameters that are not ASCII are written in the form of RFC 2231, and `decode`
    makes text of their bytes. The other parameters stay as they are.
    """
    main, parameters = _parsed(value.decode("ascii", "surrogateescape"))
    texts = [main if main.isascii() else _masked(main)]
    sections = {one.name: list[_Parameter]() for one in parameters}
    for one in parameters:
        sections[one.name].append(one)
    for name, several in sections.items():
        if name and any(one.is_foreign for one in several):
            texts += _encoded(name, _text(several, decode))
        else:
            # A piece that is neither a parameter nor ASCII means nothing to readers.
            texts += [one.raw for one in several if one.raw.isascii()]
    words = [Word(" ", f"{text};", text) for text in texts[:-1]]
    return [*words, Word(" ", texts[-1], texts[-1])]


def _masked(main: str) -> str:
    """Return what comes before the parameters, with asterisks and no comment."""
    return re.sub(r"[^\x00-\x7f]", "*", _COMMENT.sub("", main).strip(" \t"))


def _parsed(value: str) -> tuple[str, list[_Parameter]]:
    """Return the main part of a field's `value`, and its parameters."""
    pieces = [piece.strip(" \t") for piece in _PIECE.findall(value)]
    if value.lstrip(" \t").startswith(";") or not pieces:
        pieces.insert(0, "")
    return pieces[0], [_parameter(piece) for piece in pieces[1:] if piece]


def _parameter(raw: str) -> _Parameter:
    found = _PARAMETER.fullmatch(raw)
    if not found or not found[1].isascii():
        return _Parameter(raw, "", 0, False, "")
    name, value = found[1].lower(), found[4]
    if value.startswith('"'):
        end = re.match(r'"(?:[^"\\]|\\.)*+', value, re.DOTALL)
        value = _QUOTED_PAIR.sub(r"\1", end[0][1:] if end else "")
    elif name not in _FREE_TEXT:
        value = _COMMENT.sub("", value).strip(" \t")
    is_extended = found[3] is not None
    section = int(found[2] or 0) if found[2] or is_extended else -1
    return _Parameter(raw, name, section, is_extended, value)


def _text(several: Iterable[_Parameter], decode: Decode) -> str:
    """Return what the sections of one parameter mean together."""
    charset, data = _joined(several)
    try:
        return data.decode(charset) if charset else decode(data)
    except (LookupError, ValueError):
        return decode(data)


def _joined(several: Iterable[_Parameter]) -> tuple[str, bytes]:
    """Return the charset that the sections of one parameter name, and their bytes."""
    sections: dict[int, _Parameter] = {}
    for one in several:
        sections.setdefault(one.section, one)
    if len(sections) > 1:
        # A plain parameter beside them is for readers without RFC 2231.
        sections.pop(-1, None)
    charset, pieces = "", list[bytes]()
    for number, one in sorted(sections.items()):
        value = one.value
        found = _EXTENDED.match(value) if one.is_extended and not number else None
        if found:
            charset, value = found[1], found[2]
        raw = value.encode("ascii", "surrogateescape")
        pieces.append(unquote_to_bytes(raw) if one.is_extended else raw)
    return charset, b"".join(pieces)


def _encoded(name: str, content: str) -> Iterator[str]:
    """Yield a parameter in the form of RFC 2231, in several sections if it is long."""
    value = encode_rfc2231(content, "utf-8")
    charset = len("utf-8''")
    sections = _SECTION.findall(value[charset:])
    if len(sections) < 2:
        yield f"{name}*={value}"
        return
    for number, section in enumerate(sections):
        yield f"{name}*{number}*={'' if number else value[:charset]}{section}"
