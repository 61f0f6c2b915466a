"""Encoded words (RFC 2047), and header fields folded around them.

The value of a field is a list of `Word`. A field is folded only at the white space
between two words. The line breaks of the original field are not part of its value.
"""
from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass


# Maximum length of a line with an encoded word (RFC 2047, 2), without CRLF.
_LINE = 76

# Maximum length of one encoded word here. RFC 2047 allows 75, and the difference is
# for parentheses and commas beside the word.
_LONGEST = 66

# Maximum length of a word and of white space that stays as it is. A line can have
# 998 characters (RFC 5322, 2.1.1), and the name of the field is one of them.
MAX_WORD = 800
_MAX_SPACE = 60

_PREFIX, _SUFFIX = "=?utf-8?{}?", "?="
_ROOM = _LONGEST - len("=?utf-8?q??=")

_ENCODED_WORD = re.compile(r"=\?[!#-'*+\-0-9A-Z^-~]+\?[BbQq]\?[!->@-~]*\?=")
_SPACED = re.compile(r"([ \t]*+)([^ \t]+)")
_UNSAFE = re.compile(rb"[^A-Za-z0-9 !*+/-]+")

# A piece of quoted text. It ends between two characters, not inside a character.
_PIECE = re.compile(rf".{{1,{_ROOM}}}(?<!=)(?<!=.)(?=\Z|[^=]|=[0-7C-F])")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a header field.

    `text` is how the word is written and `content` what the word means, without
    quotation marks and backslashes, for example. `space` is the white space before
    it. If `is_separator` is true, white space can be added behind the word.
    """

    space: str
    text: str
    content: str
    is_separator: bool = False

    @property
    def is_encoded(self) -> bool:
        """Whether this is an encoded word already."""
        found = _ENCODED_WORD.fullmatch(self.text)
        return found is not None and len(self.text) <= MAX_WORD

    @property
    def is_foreign(self) -> bool:
        """Whether the word cannot be written as it is."""
        return not self.text.isascii() or len(self.text) > MAX_WORD

    def apart(self) -> Word:
        """Return the word with a space before it."""
        return Word(" ", self.text, self.content)


def words_of(text: str) -> list[Word]:
    """Return the words of an unstructured `text`. White space divides them."""
    found = _SPACED.findall(text.rstrip(" \t"))
    return [Word(space, word, word) for space, word in found]


def encoded(words: Sequence[Word], *, whole: bool = False) -> list[Word]:
    """Return `words` with ASCII characters only.

    The words from the first to the last foreign word become encoded words, because
    readers drop the white space between two of them (RFC 2047, 6.2). With `whole`,
    all words become encoded if one of them is foreign. Words that were encoded
    before stay as they are.
    """
    result: list[Word] = []
    run: list[Word] = []
    for word in words:
        if word.is_encoded:
            result += _encoded_run(run, whole, result, word)
            result.append(word if word.space or not result else word.apart())
            run = []
        else:
            run.append(word)
    return result + _encoded_run(run, whole, result, None)


def _encoded_run(
    run: Sequence[Word], whole: bool, before: Sequence[Word], after: Word | None
) -> list[Word]:
    """Return the words of `run`, none of which was encoded before."""
    foreign = [index for index, word in enumerate(run) if word.is_foreign]
    if not foreign:
        return list(run)
    first, last = (0, len(run) - 1) if whole else (foreign[0], foreign[-1])
    head, *tail = run[first : last + 1]
    text = head.content + "".join([word.space + word.content for word in tail])
    # White space between two encoded words means nothing: it belongs inside.
    if first == 0 and before:
        text = head.space + text
    if last == len(run) - 1 and after is not None:
        text += after.space
    made = [
        Word(" " if index or before else head.space, piece, piece)
        for index, piece in enumerate(encoded_words(text))
    ]
    return [*run[:first], *made, *run[last + 1 :]]


def encoded_words(text: str) -> Iterator[str]:
    """Yield the encoded words that mean `text`, each with whole characters."""
    data = text.encode()
    quoted = _UNSAFE.sub(_quoted, data).replace(b" ", b"_").decode("ascii")
    if len(quoted) <= (len(data) + 2) // 3 * 4:
        for piece in _PIECE.findall(quoted):
            yield _PREFIX.format("q") + piece + _SUFFIX
        return
    start, size = 0, _ROOM // 4 * 3
    while start < len(data):
        end = min(start + size, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield _PREFIX.format("b") + base64.b64encode(data[start:end]).decode() + _SUFFIX
        start = end


def _quoted(found: re.Match[bytes]) -> bytes:
    return b"=" + found[0].hex("=").upper().encode()


def folded(name: str, words: Iterable[Word]) -> str:
    """Return the field `name` with `words`, in lines that end with CRLF.

    Lines have at most 76 characters where there is white space to fold at.
    """
    lines = []
    line = f"{name}:"
    for space, text in _units(words):
        # A line that has only white space looks like the end of the header.
        is_first = line == f"{name}:"
        space = " " if is_first or len(space) > _MAX_SPACE else space
        end = len(line) + len(space) + len(text)
        fits_alone = is_first and end <= MAX_WORD and not _ENCODED_WORD.search(text)
        if end > _LINE and not fits_alone:
            lines.append(line)
            line = space or " "
        else:
            line += space
        line += text
    return "\r\n".join([*lines, line, ""])


def _units(words: Iterable[Word]) -> Iterator[tuple[str, str]]:
    """Yield pieces that cannot be folded, each with the white space before it."""
    space, texts, may_break = "", list[str](), False
    for word in words:
        if texts and (word.space or may_break):
            yield space, "".join(texts)
            texts = []
        if not texts:
            space = word.space
        texts.append(word.text)
        may_break = word.is_separator
    yield space, "".join(texts)
