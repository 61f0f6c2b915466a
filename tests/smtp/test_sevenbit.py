"""Messages of 8 bits, with ASCII characters only: bodies, parts and their headers."""
from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.policy import default
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from postcommit._mail.message import to_crlf
from postcommit._smtp.sevenbit import to_seven_bits
from postcommit.errors import MessageError
from tests.mail.test_field import check_lines


UMLAUT = "Müller"


def crlf(text: str, charset: str = "utf-8") -> bytes:
    return text.replace("\n", "\r\n").encode(charset)


def re_encoded(text: str | bytes) -> Any:
    """Return a message as a reader has it who got it through a relay of 7 bits."""
    made = to_seven_bits(crlf(text) if isinstance(text, str) else text)
    check_lines(made)
    return message_from_bytes(made, policy=default)


def leaves(message: Any) -> list[Any]:
    return [part for part in message.walk() if not part.is_multipart()]


def bodies(message: Any) -> list[bytes]:
    return [part.get_payload(decode=True) for part in leaves(message)]


def text_of(message: Any) -> str:
    text: str = message.get_content()
    return text.replace("\r\n", "\n")


def test_a_message_of_seven_bits_stays_as_it_is():
    message = crlf("Subject: x\nContent-Transfer-Encoding: 8bit\n\n" + "x" * 2000)
    assert to_seven_bits(message) is message


# Text


@pytest.mark.parametrize(
    "text",
    [
        "ü",
        "ü\n",
        "ü  \n\t\n \n",
        "ü" * 1000,
        "日本語" * 500,
        "a ü= b=3D c_?\n.\n..\n",
        "x" * 75 + "ü",
        "x" * 200 + " \nü",
        "ü" + " " * 3000 + "x",
        "\x00ü\x0b\x0c\x7f\x1b\x85\u2028",
        "\n\nü",
        "\n" * 100 + "ü",
        *("x" * length + "ü" + "=" * 3 + "y" * length for length in range(60, 80)),
    ],
)
def test_text(text):
    message = re_encoded(f"Content-Type: text/plain; charset=utf-8\n\n{text}")
    assert message["Content-Transfer-Encoding"] == "quoted-printable"
    assert message["MIME-Version"] == "1.0"
    assert message.get_payload(decode=True) == crlf(text)
    lines = message.as_bytes().partition(b"\n\n")[2].split(b"\n")
    assert max(map(len, lines)) <= 76
    assert not any(line.endswith((b" ", b"\t")) for line in lines)


@pytest.mark.parametrize(
    ("body", "charset", "rest", "expected"),
    [
        ("Größe", "utf-8", "", "utf-8"),
        ("Größe", "iso-8859-1", "", "iso-8859-1"),
        ("„Größe“", "windows-1252", "", "windows-1252"),
        ('<meta charset="windows-1251">Привет', "windows-1251", "", "windows-1251"),
        ("Größe", "iso-8859-1", "; charset=utf-8", "utf-8"),
        ("Größe", "utf-8", "; charset=us-ascii", "us-ascii"),
        ("Größe", "utf-8", "; charset=no-such-charset", "no-such-charset"),
        ("Größe", "utf-8", "; charset*=utf-8''koi8-r", "koi8-r"),
        ("Größe", "utf-8", "; charset*=utf-8''utf-8; charset*0=utf-8", "utf-8"),
        ("Größe", "utf-8", '; charset=""', "utf-8"),
    ],
)
@pytest.mark.parametrize("subtype", ["plain", "html"])
def test_the_charset_of_a_text(subtype, body, charset, rest, expected):
    """It is named where the message names none; what it names is left alone."""
    header = f"Content-Type: text/{subtype}; format=flowed{rest}\r\n\r\n"
    made = to_seven_bits(header.encode() + body.encode(charset))
    message = message_from_bytes(made, policy=default)
    assert b"format=flowed;" in made
    found = re.search(rb"charset(?:\*0?)?=\"?(?:utf-8'')?([\w-]+)", made)
    assert found
    assert found[1].decode() == expected
    assert message.get_payload(decode=True) == body.encode(charset)


@pytest.mark.parametrize("content_type", ["text", "täxt", "/", ";charset=x", ""])
def test_a_type_that_is_none(content_type):
    message = re_encoded(f"Content-Type: {content_type}\n\nä")
    assert bodies(message) == ["ä".encode()]


def test_a_text_without_a_type():
    message = re_encoded("Subject: x\n\nä\n")
    assert message["Content-Type"] == 'text/plain; charset="utf-8"'
    assert text_of(message) == "ä\n"


def test_a_body_without_a_header():
    assert text_of(re_encoded("\nä\n")) == "ä\n"


def test_a_body_that_begins_without_a_blank_line():
    """It must not look like a header because it is encoded."""
    message = re_encoded("Subject: x\nä: b\nBcc: eve@evil.example\n\nc\n")
    assert text_of(message) == "ä: b\nBcc: eve@evil.example\n\nc\n"
    assert message["Bcc"] is None


@pytest.mark.parametrize("header", ["Subject: ä", "Subject: ä\n", "Subject: ä\n\n"])
def test_a_message_without_a_body(header):
    message = re_encoded(header)
    assert message["Subject"] == "ä"
    assert message.keys() == ["Subject"]


def test_an_empty_body_below_a_header_of_eight_bits():
    made = to_seven_bits(crlf("Content-Transfer-Encoding: 8bit\nSubject: ä\n\nx\n"))
    assert made.startswith(b"Content-Transfer-Encoding: 8bit\r\nSubject: =?")
    assert made.endswith(b"?=\r\n\r\nx\r\n")


# Content-Transfer-Encoding


@pytest.mark.parametrize(
    "encoding",
    ["7bit", "8bit", "8BIT", "binary", " 8bit (x)", "8bit; x", "8-bit", "x-none", ""],
)
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-y"])
def test_a_body_that_is_not_encoded(encoding, content_type):
    """An unknown encoding is none, as it is for the standard library."""
    message = re_encoded(
        f"Content-Type: {content_type}; charset=utf-8\n"
        f"Content-Transfer-Encoding: {encoding}\nX: y\n"
        "Content-Transfer-Encoding: quoted-printable\n\nä=E4\n"
    )
    assert bodies(message) == ["ä=E4\r\n".encode()]
    assert message.keys() == [
        *("Content-Type", "Content-Transfer-Encoding", "X", "MIME-Version")
    ]


def test_quoted_printable_with_eight_bits():
    long = "ä=E4" * 50
    message = re_encoded(
        "Content-Transfer-Encoding: Quoted-Printable\n"
        f"Content-Type: text/plain; charset=iso-8859-1\n\n=\nx =\n{long}\n=3D"
    )
    assert bodies(message) == [b"x " + b"\xc3\xa4\xe4" * 50 + b"\r\n="]


@pytest.mark.parametrize("encoding", ["base64", "x-uuencode", "uuencode", "uue"])
def test_another_encoding_with_eight_bits(encoding):
    with pytest.raises(MessageError, match=f"a body in {encoding} has characters"):
        re_encoded(f"Content-Transfer-Encoding: {encoding}\n\nä\n")


def test_other_content():
    data = bytes(range(256)).replace(b"\r", b"").replace(b"\n", b"\r\n")
    message = re_encoded(b"Content-Type: image/png\r\n\r\n" + data * 20)
    assert message["Content-Transfer-Encoding"] == "base64"
    assert bodies(message) == [data * 20]


# Parts


MIXED = """\
Subject: ä
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="=_x"
Content-Transfer-Encoding: 8bit

{preamble}
--=_x

{first}
--=_x
Content-Type: application/pdf;
 name="ä.pdf"
Content-Disposition: attachment; filename=ä.pdf
Content-Transfer-Encoding: base64

AAAA
--=_x
Content-Type: text/html; charset=iso-8859-1

<p>x</p>
--=_x--
{epilogue}"""


def test_parts():
    text = MIXED.format(preamble="Für alte Leser", first="ä\n", epilogue="Größe\n")
    message = re_encoded(text)
    assert bodies(message) == ["ä\r\n".encode(), b"\x00\x00\x00", b"<p>x</p>"]
    assert message["Content-Transfer-Encoding"] == "7bit"
    [attachment] = message.iter_attachments()
    assert attachment.get_filename() == "ä.pdf"
    assert attachment["Content-Type"].params["name"] == "ä.pdf"
    assert message.preamble == "F**r alte Leser"
    assert message.epilogue == "Gr****e\r\n"
    made = to_seven_bits(crlf(text))
    html = "Content-Type: text/html; charset=iso-8859-1\n\n<p>x</p>"
    unchanged = f"--=_x\n{html}\n--=_x--"
    assert crlf(unchanged) in made


def test_a_preamble_does_not_become_a_delimiter():
    text = MIXED.format(preamble="--=_xä\n--=_ä\n--=_x-ä", first="ä", epilogue="")
    assert len(leaves(re_encoded(text))) == 3


@pytest.mark.parametrize("dashes", [2, 3, 30, 80])
@pytest.mark.parametrize("filler", ["x", "ä"])
def test_a_line_of_a_part_does_not_become_a_delimiter(dashes, filler):
    """A break in a long line must not be before it."""
    lines = [
        filler * length + "-" * dashes + "=_x" + end
        for length in range(1, 80)
        for end in ("", "--", "--ä")
    ]
    text = "\n".join(lines)
    message = re_encoded(MIXED.format(preamble="", first=f"ä\n{text}", epilogue=""))
    assert bodies(message)[0] == crlf(f"ä\n{text}")


@pytest.mark.parametrize(
    ("boundary", "delimiter"),
    [
        ('"ä"', "ä"),
        ("ä", "ä"),
        ('"x y"', "x y"),
        ('"x "', "x"),
        ('"x(+)"', "x(+)"),
        ("x (comment)", "x"),
        ('"a\\"b"', 'a"b'),
    ],
)
def test_a_boundary(boundary, delimiter):
    message = re_encoded(
        f"Content-Type: multipart/mixed; boundary={boundary}; type=z\n\n"
        f"--{delimiter}\n\nä\n--{delimiter} \t\n\nö\n--{delimiter}--\n"
    )
    assert bodies(message) == ["ä".encode(), "ö".encode()]
    assert message["Content-Type"].params["type"] == "z"


def test_a_boundary_in_sections():
    message = re_encoded(
        "Content-Type: multipart/mixed; boundary*1=y; boundary*0=x\n\n"
        "--xy\n\nä\n--xy--\n"
    )
    assert bodies(message) == ["ä".encode()]


@pytest.mark.parametrize("ending", ["", "\n", "--x--", "\n--x", "\n--x\n", "\n--x--"])
def test_a_multipart_that_is_cut_off(ending):
    text = f"Content-Type: multipart/mixed; boundary=x\n\n--x\n\nä{ending}"
    before = message_from_bytes(crlf(text), policy=default)
    assert bodies(re_encoded(text)) == bodies(before)


@pytest.mark.parametrize("boundary", ["", "; boundary=x", '; boundary=""'])
@pytest.mark.parametrize("encoding", ["8bit", "", "x"])
def test_a_multipart_without_parts(boundary, encoding):
    message = re_encoded(
        f"Content-Type: multipart/mixed{boundary}\n"
        f"Content-Transfer-Encoding: {encoding}\n\nä\n--y\n.\nö"
    )
    assert message.get_content_type() == "multipart/mixed"
    assert bodies(message) == ["ä\r\n--y\r\n.\r\nö".encode()]


def test_a_multipart_that_only_ends():
    message = re_encoded("Content-Type: multipart/mixed; boundary=x\n\nä\n--x--\nö")
    assert bodies(message) == ["ä\r\n".encode()]


def test_a_multipart_that_claims_to_be_encoded():
    message = re_encoded(
        "Content-Type: multipart/mixed; boundary=x\n"
        "Content-Transfer-Encoding: quoted-printable\n\n--x\n\nä\n--x--\n"
    )
    assert bodies(message) == ["ä".encode()]
    assert message["Content-Transfer-Encoding"] == "quoted-printable"


def test_parts_with_broken_headers():
    text = MIXED.format(
        preamble="", first="x", epilogue=""
    ).replace("--=_x\n\nx\n", "--=_x\nnö header\n--=_x\n folded: ä\nA: b\n\nc\n--=_x\n")
    found = leaves(re_encoded(text))
    assert found[0].get_payload(decode=True) == "nö header".encode()
    assert found[1].get_payload(decode=True) == b"c"
    assert found[1]["A"] == "b"


# Messages in messages


@pytest.mark.parametrize("subtype", ["rfc822", "global", "news"])
def test_a_message_in_a_message(subtype):
    message = re_encoded(
        f"Content-Type: message/{subtype}\nContent-Transfer-Encoding: 8bit\n\n"
        "Subject: ä\nTo: Jörg <b@x.org>\nContent-Type: multipart/mixed; boundary=x\n\n"
        "--x\nContent-Disposition: inline; filename=ä\n\nä\n--x--\n"
    )
    assert message["Content-Transfer-Encoding"] == "7bit"
    [inner] = message.get_payload()
    assert inner["Subject"] == "ä"
    assert inner["MIME-Version"] == "1.0"
    assert inner["To"].addresses[0].display_name == "Jörg"
    assert bodies(inner) == ["ä".encode()]
    assert leaves(inner)[0].get_filename() == "ä"


def test_a_message_in_a_message_has_a_charset_of_its_own():
    inner = b"Subject: \xd0\xd2\xc9\r\nContent-Type: text/html; charset=koi8-r\r\n\r\n"
    message = re_encoded(
        b"Content-Type: message/rfc822; charset=utf-8\r\nSubject: \xe4\r\n\r\n" + inner
    )
    assert message["Subject"] == "ä"
    assert message.get_payload()[0]["Subject"] == "при"


def test_a_digest():
    message = re_encoded(
        "Content-Type: multipart/digest; boundary=x\n\n"
        "--x\n\nSubject: ä\n\nö\n--x\nContent-Type: text/plain\n\nü\n--x--\n"
    )
    first, second = message.get_payload()
    assert first.get_content_type() == "message/rfc822"
    assert first.get_payload()[0]["Subject"] == "ä"
    assert bodies(message) == ["ö".encode(), "ü".encode()]
    assert second.get_content_type() == "text/plain"


def test_a_bounce():
    message = re_encoded(
        "Content-Type: multipart/report; report-type=delivery-status; boundary=x\n\n"
        "--x\n\nUnzustellbär\n"
        "--x\nContent-Type: message/delivery-status\n\n"
        "Reporting-MTA: dns; x\nX-Note: ä\n\n\n"
        "Final-Recipient: rfc822; b@x.org\nAction: failed\n"
        "Diagnostic-Code: smtp; 550 Postfach\n existiert nicht: größe\nnö field\n\n"
        "--x\nContent-Type: text/rfc822-headers\n\nSubject: ä\n--x--\n"
    )
    text, report, headers = message.get_payload()
    first, second = filter(len, report.get_payload())
    assert first["X-Note"] == "ä"
    assert second["Action"] == "failed"
    assert second["Diagnostic-Code"] == "smtp; 550 Postfach existiert nicht: größe"
    assert text.get_content() == "Unzustellbär"
    assert headers.get_content() == "Subject: ä"


def test_a_fragment_of_a_message():
    with pytest.raises(MessageError, match="message/partial"):
        re_encoded('Content-Type: message/partial; id="x"; number=2\n\nä\n')


def test_a_message_that_is_encoded():
    message = to_seven_bits(
        crlf(
            "Content-Type: message/rfc822\n"
            "Content-Transfer-Encoding: quoted-printable\n\nSubject: =C3=A4\n\nö\n"
        )
    )
    assert message.endswith(b"\r\n\r\nSubject: =C3=A4\r\n\r\n=C3=B6\r\n")


@pytest.mark.parametrize(
    "layer",
    [
        "Content-Type: message/rfc822\n\n",
        "Content-Type: multipart/mixed; boundary={0}\n\n--{0}\n",
    ],
)
def test_parts_inside_each_other(layer):
    deep = "".join(layer.format(f"b{depth}x") for depth in range(100))
    assert bodies(re_encoded(f"{deep}\nä")) == ["ä".encode()]
    with pytest.raises(MessageError, match="more than 100 deep"):
        re_encoded(f"{deep}{layer.format('b')}\nä")


@pytest.mark.parametrize("first", ["From ä Mon Jan 1 10:10:10 2024\n", " ä\n", ": ä\n"])
def test_a_first_line_that_is_no_field(first):
    message = re_encoded(f"{first}Subject: ä\n\nö\n")
    assert message["Subject"] == "ä"
    assert text_of(message) == "ö\n"


# Any message


TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"),
    max_size=200,
)
NAME = TEXT.map(lambda text: re.sub(r"\s", "", text)[:50] + "ä.txt")


@st.composite
def messages(draw: Any) -> EmailMessage:
    message = EmailMessage(policy=SMTPUTF8.clone(max_line_length=998, cte_type="8bit"))
    message["Subject"] = draw(TEXT)
    message["X-Any"] = draw(TEXT)
    message["From"] = "Änne <a@x.org>"
    message.set_content(draw(TEXT), cte="8bit")
    if draw(st.booleans()):
        message.add_alternative(draw(TEXT), subtype="html", cte="8bit")
    for name in draw(st.lists(NAME, max_size=3)):
        data = draw(st.binary(max_size=200))
        message.add_attachment(
            data, maintype="image", subtype="png", filename=name, cte="base64"
        )
    if draw(st.booleans()):
        message.preamble = draw(TEXT.filter(str.isascii))
    return message


@settings(deadline=None, max_examples=150)
@given(messages())
def test_the_meaning_stays_the_same(message):
    data = to_crlf(message.as_bytes())
    received = re_encoded(data)
    assert [part.get_content_type() for part in received.walk()] == [
        part.get_content_type() for part in message.walk()
    ]
    for mine, theirs in zip(leaves(message), leaves(received), strict=True):
        assert theirs.get_filename() == mine.get_filename()
        if mine.get_content_maintype() == "text":
            assert text_of(theirs) == text_of(mine)
        else:
            assert theirs.get_content() == mine.get_content()
    for name in ("Subject", "X-Any"):
        if "=?" not in message[name]:
            assert received[name].strip(" ") == message[name].strip(" ")


@settings(deadline=None, max_examples=500)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=5),
            st.sampled_from(
                [
                    *(b"\n", b"\n\n", b"--x\n", b"--x--\n", b"\xc3\xa4", b"\xe4", b" "),
                    b"Content-Type: multipart/mixed; boundary=x\n",
                    b"Content-Type: multipart/digest; boundary=\xe4\n",
                    b"Content-Type: message/rfc822\n",
                    b"Content-Type: message/delivery-status\n",
                    b"Content-Type: text/html\n",
                    b"Content-Transfer-Encoding: quoted-printable\n",
                    b"Content-Transfer-Encoding: base64\n",
                    b"To: J\xf6rg <b@x.org>\n",
                    b"Subject: ",
                ]
            ),
        ),
        max_size=20,
    ).map(b"".join)
)
def test_whatever_a_message_is(data):
    """The result has 7 bits, or there is a reason."""
    message = to_crlf(data)
    try:
        made = to_seven_bits(message)
    except MessageError:
        return
    if message.isascii():
        assert made == message
    else:
        check_lines(made)
        assert to_seven_bits(made) is made


# Time


class Lines:
    """Counts the lines of the library that are run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: Any, event: str, argument: object) -> Any:
        if "postcommit" not in frame.f_code.co_filename:
            return None
        self.count += event == "line"
        return self


def lines_run(function: Callable[[], object]) -> int:
    lines = Lines()
    before = sys.gettrace()
    sys.settrace(lines)
    try:
        function()
    except MessageError:
        pass
    finally:
        sys.settrace(before)
    return lines.count


PATTERNS = [
    *("x", "ä", "x ", "ä ", "  ", ",", '"', '"ä"', "(", ")", "(ä)", "<", "<ä", "["),
    *(";", ":", "\\", "@", "=?", "%", "'", "*", "; a=ä", "; filename*0=ä", "a@b.org,"),
    *("Jörg <a@x.org>, ", "=?utf-8?q?x?= ä ", "\r\n ä", "\r\nä: ö", "\r\n\r\nä"),
]


@pytest.mark.parametrize("name", ["To", "Subject", "Content-Type", "Date"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_work_grows_with_the_message(name, pattern):
    def run(size: int) -> int:
        message = f"{name}: ä {pattern * size} ä\r\n\r\nä".encode()
        return lines_run(lambda: to_seven_bits(message))

    # Twice as much work, and what is done once, such as the end of a line.
    small, large = run(500), run(1000)
    assert large <= 2 * small + 200


# How a regular expression could go back and forth in them.
REPEATED = {
    "a word": "Subject: ü {x}\n\n",
    "a word with an @": "Subject: ü {x}@ü\n\n",
    "words": "Subject: ü {x }ü\n\n",
    "an address": "To: ü <{x}@x.org>\n\n",
    "spaces in an address": "To: ü{ }x <b@x.org>{ }\n\n",
    "comments": "To: ü {(}\n\n",
    "literals": "To: ü {[x}\n\n",
    "quotes": 'To: ü {"}\n\n',
    "quotes without an end": 'To: ü {x}{"\\}\n\n',
    "brackets": 'To: ü {<"}\n\n',
    "spaces in a parameter": "Content-Type: text/plain; ü={ }x={ }\n\n",
    "comments in a parameter": "Content-Type: text/plain ({(}ü\n\n",
    "no header": "{x}{ }\n\nü",
    "spaces in a body": "\nü{ }x{\t}\n",
    "a line of a body": "\nü{x}{=}{ü}",
    "fields": "{Content-Transfer-Encoding: 8bit\n}\nü",
    "charsets": "Subject: ü\n\n{charset }{charset=x}",
    "dashes": "Content-Type: multipart/mixed; boundary=-\n\n---\n\nü{-}",
}


@pytest.mark.parametrize("pattern", REPEATED.values(), ids=REPEATED)
def test_the_time_grows_with_the_message(pattern):
    def seconds(size: int) -> float:
        text = re.sub(r"\{(.+?)\}", lambda found: found[1] * size, pattern)
        times = []
        for _ in range(3):
            start = time.thread_time()
            try:
                to_seven_bits(crlf(text))
            except MessageError:
                assert text.startswith("To: ")
            times.append(time.thread_time() - start)
        return min(times)

    # Sixteen times as long takes 16 times as much, or 256 times.
    small, large = seconds(2_500), seconds(40_000)
    assert large < 0.05 or large < 80 * small
