"""A message as the page shows it: header, text, HTML, links and attachments."""
from __future__ import annotations

import base64
import email
import re
from dataclasses import dataclass
from dataclasses import field
from email.message import Message
from html.parser import HTMLParser
from typing import Any

from postcommit._log import Log
from postcommit._log import printable
from postcommit._mail.readable import decoded
from postcommit._mail.readable import fields_of_header
from postcommit._mail.readable import header_of


log = Log("postcommit.web")

# Maximum number of bytes of a message that are shown.
MOST = 2 << 20

# Maximum number of parts that a message may have, and of attachments that are listed.
_MOST_PARTS = 20_000
MOST_ATTACHMENTS = 200

# Maximum number of links that are listed, and of characters of each.
_MOST_LINKS = 200
_LONGEST_LINK = 2000

# Number of characters of HTML that are parsed at once, and maximum number of a tag. A
# hostile message may have one tag with a million attributes.
_CHUNK = 1 << 16
_LONGEST_TAG = 1 << 17

# Maximum number of bytes of a header that is shown as fields, and of characters that
# the images of a message may add to its HTML, which may show one image many times.
_LONGEST_HEADER = 1 << 17
_LONGEST_IMAGES = 2 * MOST

# Elements of a message that are made unknown to the browser. For some of them, such as
# ``<object data>`` and ``<link rel="preconnect">``, Chromium opens a connection to the
# other host before it looks at the policy. No request follows, but the host learns that
# somebody reads the mail.
_CONNECTING = re.compile(
    r"<(?=(?:link|object|embed|applet|i?frame|fencedframe|portal|meta)[\s/>])",
    re.IGNORECASE,
)

# The targets of links. A click would only lead to an error in the frame, and Chromium
# opens a connection to the host even so. The page lists the links instead.
_HREF = re.compile(r"(?<=[\s\"'/:])href(?=\s*=)", re.IGNORECASE)

# Makes links without a target look like links, unless the message says otherwise.
_LINK_STYLE = (
    "<style>:where([data-href]) { color: LinkText; text-decoration: underline }</style>"
)

_CID = re.compile(r"\bcid:([^\s\"'<>)]+)")


@dataclass(frozen=True)
class Attachment:
    """A part of a message that is not shown. `number` is its place in the message."""

    number: int
    name: str
    content_type: str
    size: int


@dataclass(frozen=True)
class Link:
    """A link in the HTML of a message, as text."""

    text: str
    target: str


@dataclass
class ShownMessage:
    """A message. `source` is the message itself, perhaps cut after `MOST` bytes.

    `problem` says why it has no parts. Then only the source is shown.
    """

    source: bytes
    is_cut: bool = False
    problem: str = ""
    text: str = ""
    html: str = ""
    attachments: list[Attachment] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The fields of the header, decoded, in one line each."""
        found = fields_of_header(header_of(self.source[:_LONGEST_HEADER]))
        return [(printable(name), printable(text)) for name, text in found]

    @property
    def source_text(self) -> str:
        """The source as text. Bytes that are not UTF-8 are shown as escapes."""
        return self.source.decode("utf-8", "backslashreplace")

    def as_record(self) -> dict[str, Any]:
        """Return the object for JSON."""
        return {
            "header": self.fields,
            "text": self.text,
            "html": self.html,
            "source": self.source_text,
            "is_cut": self.is_cut,
            "attachments": [vars(p) for p in self.attachments[:MOST_ATTACHMENTS]],
            "links": [vars(link) for link in self.links],
        }


def shown(data: bytes) -> ShownMessage:
    """Return the message with these bytes, of which there may be more than `MOST`."""
    message = ShownMessage(data[:MOST], is_cut=len(data) > MOST)
    try:
        _read(message)
    except Exception:
        # Any message may be in a queue, also one that makes a parser fail.
        log.warning("A message cannot be parsed, its source is shown", exc_info=True)
        return ShownMessage(
            message.source, message.is_cut, "The message cannot be parsed."
        )
    return message


def attachment(data: bytes, number: int) -> tuple[Attachment, bytes] | None:
    """Return a part of the message and its content, or None if the part is missing.

    A message that cannot be parsed does not have parts.
    """
    found = shown(data)
    for part in found.attachments:
        if part.number == number:
            return part, _content(_leaves(_parsed(found.source))[number])
    return None


def _parsed(source: bytes) -> Message:
    return email.message_from_bytes(source)


def _leaves(message: Any) -> list[Message]:
    """Return the parts without parts in them. A message in a message is one part."""
    if message.get_content_maintype() != "multipart" or not message.is_multipart():
        return [message]
    return [leaf for part in message.get_payload() for leaf in _leaves(part)]


def _read(message: ShownMessage) -> None:
    if message.source.count(b"\n--") > _MOST_PARTS:
        raise ValueError("the message has too many parts")
    images: dict[str, str] = {}
    text = html = None
    for number, part in enumerate(_leaves(_parsed(message.source))):
        kind = part.get_content_type()
        is_shown = part.get_content_disposition() != "attachment"
        if is_shown and kind == "text/plain" and text is None:
            text = _text(part)
        elif is_shown and kind == "text/html" and html is None:
            html = _text(part)
        else:
            content = _content(part)
            message.attachments.append(
                Attachment(number, _name(part, number), kind, len(content))
            )
            if kind.startswith("image/"):
                images[_content_id(part)] = _data_url(kind, content)
    message.text, message.html = text or "", html or ""
    message.links = links_in(message.html)
    # Images of the message itself are shown. Nothing is fetched for them.
    html = _with_images(message.html, images)
    html, count = _HREF.subn("data-href", _CONNECTING.sub("<no-", html))
    message.html = html + _LINK_STYLE if count else html


def _with_images(html: str, images: dict[str, str]) -> str:
    """Put the images of the message into its HTML, as far as there is room."""
    left = _LONGEST_IMAGES

    def replaced(found: re.Match[str]) -> str:
        nonlocal left
        image = images.get(found[1], found[0])
        left -= len(image)
        return image if left >= 0 else found[0]

    return _CID.sub(replaced, html)


def _content(part: Message) -> bytes:
    if part.is_multipart():
        inside: Any = part.get_payload()
        return b"\n".join(each.as_bytes() for each in inside)
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _text(part: Message) -> str:
    content = _content(part)
    try:
        text = content.decode(part.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):
        text = content.decode("utf-8", "replace")
    # Some codecs of Python return lone surrogates, which cannot be sent to a browser.
    return text.encode("utf-8", "replace").decode().replace("\r\n", "\n")


def _name(part: Message, number: int) -> str:
    name = printable(decoded(part.get_filename() or ""))
    return name or f"part-{number + 1}"


def _content_id(part: Message) -> str:
    return str(part.get("Content-ID", "")).strip().strip("<>")


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


class _Links(HTMLParser):
    """Collects the links of HTML, which is never shown by this."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[list[str], str]] = []
        self._is_open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag in ("a", "area") and target:
            self.found.append(([], target))
            self._is_open = tag == "a"

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._is_open = False

    def handle_data(self, data: str) -> None:
        if self._is_open:
            self.found[-1][0].append(data)


def links_in(html: str) -> list[Link]:
    """Return the first links in `html`, with their texts and targets in one line."""
    parser = _Links()
    for start in range(0, len(html), _CHUNK):
        parser.feed(html[start : start + _CHUNK])
        if len(parser.found) > _MOST_LINKS or len(parser.rawdata) > _LONGEST_TAG:
            break
    return [
        Link(
            printable(" ".join("".join(texts).split())[:_LONGEST_LINK]),
            printable(target.strip()[:_LONGEST_LINK]),
        )
        for texts, target in parser.found[:_MOST_LINKS]
    ]
