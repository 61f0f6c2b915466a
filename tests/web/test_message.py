"""A message as the page shows it, also one that is damaged or hostile."""
from __future__ import annotations

import base64
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from postcommit.web import _message
from postcommit.web._message import MOST
from postcommit.web._message import attachment
from postcommit.web._message import links_in
from postcommit.web._message import shown


CORPUS = sorted((Path(__file__).parent.parent / "corpus").glob("*.eml"))

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


def newsletter() -> bytes:
    message = EmailMessage()
    message["Subject"] = "Teapots ☕"
    message.set_content("Teapots are here.\n")
    html = '<p>Teapots<img src="cid:pot@x.org"> <a href="http://x.org/">here</a>'
    message.add_alternative(f"{html}<img src=cid:unknown>", subtype="html")
    part = message.get_payload()[1]  # type: ignore[index]
    part.add_related(PNG, "image", "png", cid="<pot@x.org>")  # type: ignore[union-attr]
    message.add_attachment(b"a,b\n", "text", "csv", filename="Tee-Käufe.csv")
    inner = EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("inside\n")
    message.add_attachment(inner)
    return message.as_bytes()


def test_the_parts_of_a_message() -> None:
    message = shown(newsletter())
    assert message.problem == ""
    assert message.text == "Teapots are here.\n"
    assert message.fields[0] == ("Subject", "Teapots ☕")
    assert [(p.name, p.content_type) for p in message.attachments] == [
        ("part-3", "image/png"),
        ("Tee-Käufe.csv", "text/csv"),
        ("part-5", "message/rfc822"),
    ]
    assert [(link.text, link.target) for link in message.links] == [
        ("here", "http://x.org/")
    ]


def test_images_of_the_message_are_in_its_html() -> None:
    html = shown(newsletter()).html
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in html
    assert "src=cid:unknown" in html


@pytest.mark.parametrize(
    ("html", "shown_html"),
    [
        ("<link rel=preconnect>", "<no-link rel=preconnect>"),
        ("<LINK\nrel=preconnect>", "<no-LINK\nrel=preconnect>"),
        ("<link/rel=preconnect>", "<no-link/rel=preconnect>"),
        ("<link>", "<no-link>"),
        ("<object data=x>", "<no-object data=x>"),
        ("<iframe src=x>", "<no-iframe src=x>"),
        ("<frame src=x>", "<no-frame src=x>"),
        ("<meta http-equiv=refresh>", "<no-meta http-equiv=refresh>"),
        ("<links><framework>", "<links><framework>"),
        ("<p>link", "<p>link"),
        ("<a b='c'HREF = x>", f"<a b='c'data-href = x>{_message._LINK_STYLE}"),
        ("<a/href=x>", f"<a/data-href=x>{_message._LINK_STYLE}"),
        ("<a data-hrefs=x>", "<a data-hrefs=x>"),
    ],
)
def test_no_element_connects_to_another_host(html: str, shown_html: str) -> None:
    assert shown(f"Content-Type: text/html\n\n{html}".encode()).html == shown_html


def test_an_attachment_is_what_was_attached() -> None:
    data = newsletter()
    contents = {}
    for part in shown(data).attachments:
        found = attachment(data, part.number)
        assert found is not None
        assert found[0] == part
        assert part.size == len(found[1])
        contents[part.name] = found[1]
    assert contents["part-3"] == PNG
    assert contents["Tee-Käufe.csv"] == b"a,b\n"
    assert b"Subject: Inner" in contents["part-5"]
    assert attachment(data, 0) is None
    assert attachment(data, 99) is None


@pytest.mark.parametrize(
    ("charset", "content", "text"),
    [
        ("utf-8", "Tee für Ünal".encode(), "Tee für Ünal"),
        ("iso-8859-1", "für".encode("latin-1"), "für"),
        ("nope", "für".encode(), "für"),
        ("utf-8", b"f\xfcr", "f\ufffdr"),
        ("unicode_escape", rb"\ud800", "?"),
        ("hex", b"61", "61"),
    ],
)
def test_a_charset(charset: str, content: bytes, text: str) -> None:
    head = f'Content-Type: text/plain; charset="{charset}"\n\n'.encode()
    assert shown(head + content).text == text


def test_a_charset_whose_errors_python_shows_in_different_ways() -> None:
    """Python 3.13 leaves out what it cannot read."""
    head = b'Content-Type: text/plain; charset="punycode"\n\n'
    assert shown(head + b"\xff").text in ("\ufffd", "")


def test_controls_in_a_header_are_shown() -> None:
    message = shown(b"Subject: =?utf-8?q?a=E2=80=AEb=1B?=\nno field\n\ntext\n")
    assert message.fields == [("Subject", "a\\u202eb\\x1b"), ("", "no field")]


def test_a_message_is_cut() -> None:
    message = shown(b"Subject: x\n\n" + b"y" * MOST)
    assert message.is_cut
    assert len(message.source) == MOST
    assert not shown(b"Subject: x\n\n").is_cut


def test_a_message_that_cannot_be_parsed(caplog: pytest.LogCaptureFixture) -> None:
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n)
        for n in range(2000)
    )
    message = shown(deep)
    assert message.problem == "The message cannot be parsed."
    assert message.source_text == deep.decode()
    assert (message.text, message.html, message.attachments) == ("", "", [])
    assert "cannot be parsed" in caplog.text
    assert attachment(deep, 0) is None


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_message_of_the_corpus(path: Path) -> None:
    data = path.read_bytes()
    message = shown(data)
    assert message.problem == ""
    for part in message.attachments:
        assert attachment(data, part.number) is not None
    message.as_record()


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_shown(data: bytes) -> None:
    for head in (b"", b"Content-Type: text/html\n\n", b"Content-Type: "):
        message = shown(head + data)
        for text in (message.text, message.html, message.source_text):
            text.encode()
        for name, text in message.fields:
            assert (name + text).isprintable()
        for link in message.links:
            assert (link.text + link.target).isprintable()


@pytest.mark.parametrize(
    ("html", "links"),
    [
        ("<a href=http://x>a<b>b</b>\n c</a> d", [("ab c", "http://x")]),
        ("<a href=1>a<a href=2>b</a>", [("a", "1"), ("b", "2")]),
        ("<area href=1>text", [("", "1")]),
        ("<a name=x>text</a><a href>b</a>", []),
        ("<a href='a\u202eb'>\u202ex</a>", [("\\u202ex", "a\\u202eb")]),
        ("<a href=1", []),
        ("</a><!-- <a href=1> -->", []),
    ],
)
def test_links(html: str, links: list[tuple[str, str]]) -> None:
    assert [(link.text, link.target) for link in links_in(html)] == links


def test_links_are_bounded() -> None:
    many = f"<a href={'x' * 9000}>{'y' * 9000}</a>" * 1000
    links = links_in(many)
    assert len(links) == _message._MOST_LINKS
    assert len(links[0].target) == len(links[0].text) == _message._LONGEST_LINK


# Messages that would need much time or memory


def mixed(*parts: bytes) -> bytes:
    head = b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=B\n\n"
    return head + b"".join(b"--B\n" + part + b"\n" for part in parts) + b"--B--\n"


def test_one_image_that_is_shown_many_times() -> None:
    """A hundred kilobytes would become a gigabyte."""
    html = b"Content-Type: text/html\n\n" + b"<img src=cid:a>" * 10_000
    image = b"Content-Type: image/png\nContent-ID: <a>\n\n" + b"x" * 100_000
    message = shown(mixed(html, image))
    assert message.html.count("data:image/png") > 10
    assert message.html.count("cid:a") > 9000
    assert len(message.html) < 3 * MOST


def test_a_message_with_many_parts() -> None:
    message = shown(mixed(*[b"Content-Type: text/csv\n\na,b"] * 10_000))
    assert len(message.attachments) == 10_000
    assert len(message.as_record()["attachments"]) == 200


def test_a_message_of_parts_only() -> None:
    message = shown(mixed(*[b""] * 200_000))
    assert message.problem == "The message cannot be parsed."
    assert message.attachments == []
    assert message.source_text.startswith("MIME-Version")


def test_the_beginning_of_a_very_long_header() -> None:
    words = b"=?utf-8?q?x?= " * 80_000
    message = shown(b"Subject: " + words + b"\nTo: a@x.org\n\ntext\n")
    [(name, text)] = message.fields
    assert name == "Subject"
    assert text.startswith("xxxx")
    assert len(text) < 200_000


def test_links_beside_a_very_long_tag() -> None:
    link = "<a href=/{}>text</a>"
    html = link.format(1) + "<p>" * 200_000 + link.format(2)
    assert [each.target for each in links_in(html)] == ["/1", "/2"]
    html += "<p " + "a " * 200_000 + ">" + link.format(3)
    assert [each.target for each in links_in(html)] == ["/1", "/2"]
