"""Header fields of 8 bits, with ASCII characters only: by kind, and by meaning."""
from __future__ import annotations

import email.utils
import random
import re
from email import message_from_bytes
from email import message_from_string
from email.header import decode_header
from email.header import make_header
from email.policy import default

import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from postcommit._mail.address import header_addresses
from postcommit._mail.address import on_the_wire
from postcommit._smtp.sevenbit import to_seven_bits
from postcommit.errors import AddressError
from postcommit.errors import MessageError


# Some versions find no address at all where one of several has a literal or a comment.
LENIENT = (
    {"strict": False} if getattr(email.utils, "supports_strict_parsing", False) else {}
)


def re_encoded(field: str | bytes) -> bytes:
    """Return a field as it leaves, without its last line end."""
    raw = field.encode() if isinstance(field, str) else field
    made = to_seven_bits(raw + b"\r\n\r\nx\r\n")
    assert made.endswith(b"\r\n\r\nx\r\n")
    check_lines(made)
    return made[: -len(b"\r\n\r\nx\r\n")]


def check_lines(data: bytes) -> None:
    assert data.isascii()
    assert b"\r" not in data.replace(b"\r\n", b"")
    assert b"\n" not in data.replace(b"\r\n", b"")
    for line in data.split(b"\r\n"):
        assert len(line) <= (76 if b"=?utf-8?" in line else 998)
        for word in re.findall(rb"=\?utf-8\?.*?\?=", line):
            assert len(word) <= 75


def decoded(field: bytes) -> str:
    """Return the value of a field as a reader after RFC 2047 shows it."""
    value = field.decode("ascii").partition(":")[2].replace("\r\n", "").strip(" ")
    return str(make_header(decode_header(value)))


def parsed(field: bytes):
    """Return the value of a field as `email.policy.default` has it."""
    [(_, value)] = message_from_bytes(field + b"\r\n\r\n", policy=default).items()
    return value


def pairs(field: bytes) -> list[tuple[str, str]]:
    value = field.decode("ascii").partition(":")[2].replace("\r\n", "")
    return [
        (str(make_header(decode_header(name))), address)
        for name, address in email.utils.getaddresses([value], **LENIENT)
    ]


# Text


@pytest.mark.parametrize(
    "value",
    [
        "für müller@example.org",
        '"ä" b',
        'ä "ö"',
        "Füße, Hände",
        "(Füße), <Hände>; a:b",
        "a ä b c ö d",
        "a  ä   b\tc  ö  d",
        "ä",
        "x ä\N{NO-BREAK SPACE}: y",
        "Grüße an =?x",
        "äöü" * 30,
        "日本語の件名 " * 20,
        "emoji \N{PILE OF POO} \N{FAMILY}",
        "ä" * 1000,
        "ü " + "x" * 5000,
        "x" * 5000 + " ü",
        "ü a=b?c_d",
        "ü \x00 \x0b \x7f x\x00ü",
        "ü \u2028 \x85 ö",
    ],
)
@pytest.mark.parametrize("name", ["Subject", "X-Any", "Content-Description"])
def test_text(name, value):
    made = re_encoded(f"{name}: {value}")
    assert decoded(made) == value.rstrip()
    if name == "Subject":
        assert str(parsed(made)) == value.rstrip()


def test_words_before_and_behind_stay_as_they_are():
    made = re_encoded("Subject: [list] Re: ä ö (was: x)")
    assert made.startswith(b"Subject: [list] Re: =?utf-8?")
    assert made.endswith(b"?= (was: x)")


def test_what_was_encoded_before_stays_so():
    """White space between two encoded words is not shown (RFC 2047, 6.2)."""
    old = "=?iso-8859-1?q?=E4?="
    for value, shown in [
        (f"{old} ö", "ä ö"),
        (f"ö {old}", "ö ä"),
        (f"ö {old} x {old} ü", "ö ä x ä ü"),
        (f"{old} x ö", "ä x ö"),
        (f"ö x {old}", "ö x ä"),
        (f"{old}  {old} ö", "ää ö"),
    ]:
        made = re_encoded(f"Subject: {value}")
        assert old.encode() in made
        assert decoded(made) == shown
        assert str(parsed(made)) == shown


def test_an_encoded_word_that_is_too_long_for_a_line():
    """No reader has to understand it (RFC 2047, 2), but it must be folded."""
    made = re_encoded(f"Subject: ä =?utf-8?q?{'x' * 2000}?=")
    assert decoded(made).startswith("ä =?")


def test_what_only_looks_encoded_is_not_decoded():
    assert decoded(re_encoded("Subject: ä =?x?= =?y?z?a?= ö")) == (
        "ä =?x?= =?y?z?a?= ö"
    )


@pytest.mark.parametrize("fold", ["\r\n ", "\r\n\t", " \r\n  "])
def test_a_folded_field(fold):
    made = re_encoded(f"Subject: a{fold}ä{fold}b{fold}ö{fold}c")
    assert decoded(made) == f"a{fold}ä{fold}b{fold}ö{fold}c".replace("\r\n", "")


@pytest.mark.parametrize("space", [" ", "\t", "   ", ""])
def test_the_space_after_the_colon(space):
    assert re_encoded(f"Subject:{space}x ä").startswith(b"Subject: x =?")


def test_much_space_is_no_line_of_its_own():
    made = re_encoded(f"Subject: a{' ' * 3000}b{' ' * 3000}ä{' ' * 3000}")
    assert decoded(made).split() == ["a", "b", "ä"]
    assert all(line.strip() for line in made.split(b"\r\n"))


@pytest.mark.parametrize(
    "field",
    [
        "DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=" + "x" * 900 + ";\r\n\tbh=y=",
        "To:a@b.example,c@d.example ,\r\n\t e@f.example  ",
        'Content-Type:text/plain;charset="utf-8"  ;\r\n\tx=y',
        "Subject:  x\t y  ",
    ],
)
def test_a_field_of_seven_bits_stays_as_it_is(field):
    whole = f"X: ä\r\n{field}\r\nY: ä\r\n\r\nä\r\n".encode()
    assert b"?=\r\n" + field.encode() + b"\r\nY: =?" in to_seven_bits(whole)


def test_the_name_of_a_field_stays_as_it_is():
    assert re_encoded("sUBJECT : ä").startswith(b"sUBJECT : =?")
    long = "X-" + "y" * 900
    made = re_encoded(f"{long}: ä")
    assert made.startswith(f"{long}:\r\n =?".encode())


# Charsets


@pytest.mark.parametrize(
    ("value", "charset", "declared"),
    [
        ("Grüße", "utf-8", "iso-8859-1"),
        ("Grüße", "iso-8859-1", ""),
        ("Grüße", "iso-8859-1", "no-such-charset"),
        ("Grüße", "iso-8859-1", "utf-16"),
        ("Grüße", "iso-8859-1", "utf-8"),
        ("Grüße", "iso-8859-1", "cp037"),
        ("Grüße", "iso-8859-1", "rot13"),
        ("Grüße", "iso-8859-1", "unicode_escape"),
        ("„Grüße“ für 5 €", "windows-1252", ""),
        ("„Grüße“ für 5 €", "windows-1252", "windows-1252"),
        ("Привет", "koi8-r", "koi8-r"),
        ("Привет", "windows-1251", '"Windows-1251"'),
        ("日本語", "shift_jis", "Shift_JIS"),
        ("日本語", "euc-jp", "euc-jp"),
        ("汉字", "gb18030", "gb18030"),
        ("漢字", "big5", "big5"),
        ("Ελλάδα", "iso-8859-7", "iso-8859-7"),
    ],
)
def test_the_charset_of_a_field(value, charset, declared):
    rest = f"\r\nContent-Type: text/plain; charset={declared}\r\n\r\nx\r\n"
    made = to_seven_bits(f"Subject: {value}".encode(charset) + rest.encode())
    assert decoded(made.split(b"\r\nContent")[0]) == value


def test_bytes_that_are_in_no_charset():
    assert decoded(re_encoded(b"Subject: \x81\xff")) == "\x81ÿ"


# Parameters


@pytest.mark.parametrize("name", ["Content-Type", "Content-Disposition"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ä.txt", "ä.txt"),
        ('"ä.txt"', "ä.txt"),
        ('"ä b.txt"', "ä b.txt"),
        ("ä b.txt", "ä b.txt"),
        ("ä (1).txt", "ä (1).txt"),
        ('"ä; b=c, d.txt"', "ä; b=c, d.txt"),
        (r'"\"ä\" b.txt"', '"ä" b.txt'),
        (r'"ä\\b.txt"', r"ä\b.txt"),
        ('"ä 100%.txt"', "ä 100%.txt"),
        ("\"ä'b'c.txt\"", "ä'b'c.txt"),
        ('"' + "ä" * 300 + '.txt"', "ä" * 300 + ".txt"),
        ('"' + "日本" * 40 + '.txt"', "日本" * 40 + ".txt"),
        ('"ä.txt', "ä.txt"),
        ('"ä\r\n .txt"', "ä .txt"),
    ],
)
def test_a_file_name(name, written, meant):
    parameter = "name" if name == "Content-Type" else "filename"
    main = "text/plain" if name == "Content-Type" else "attachment"
    made = re_encoded(f"{name}: {main}; x=y; {parameter}={written}")
    assert made.startswith(f"{name}: {main}; x=y;".encode())
    message = message_from_bytes(made + b"\r\n\r\n", policy=default)
    assert message.get_filename() == meant
    assert parsed(made).params["x"] == "y"
    assert not parsed(made).defects


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
@pytest.mark.parametrize(
    ("parameters", "meant"),
    [
        ("filename*=utf-8''%C3%A4; x=\"ö\"", "ä"),
        ("filename*=iso-8859-1''%E4; x=\"ö\"", "ä"),
        ("filename=\"ä.txt\"; filename*=utf-8''%C3%A4.txt", "ä.txt"),
        ("filename*=utf-8''%C3%A4.txt; filename=\"ä.txt\"", "ä.txt"),
        ('filename*0="ä"; filename*1="b.txt"', "äb.txt"),
        ('filename*1="b.txt"; filename*0="ä"', "äb.txt"),
        ("filename*0*=utf-8''%C3%A4; filename*1=\"b ö\"", None),
        ("filename=\"ä\"; filename=\"ö\"", "ä"),
        ("filename*=no-such''%61ä", None),
        ("filename*=ä", "ä"),
    ],
)
def test_parameters_in_the_form_of_rfc_2231(charset, parameters, meant):
    made = re_encoded(f"Content-Disposition: inline; {parameters}".encode(charset))
    found = message_from_bytes(made + b"\r\n\r\n", policy=default).get_filename()
    if meant is not None:
        assert found == meant
    assert found
    assert b"filename" in made


def test_several_parameters():
    made = re_encoded(
        'Content-Type: application/pdf; name="ä.pdf"; size=7; "x; title=ö; =; ü; é=1;'
    )
    assert b"size=7" in made
    made = re_encoded('Content-Type: application/pdf; name="ä.pdf"; a="b;c"; title=ö')
    assert dict(parsed(made).params) == {"name": "ä.pdf", "a": "b;c", "title": "ö"}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Content-Type: täxt/plain; a=b", "Content-Type: t**xt/plain; a=b"),
        ("Content-Disposition: inline (für); a=b", "Content-Disposition: inline; a=b"),
        ("Content-Type: text/plain; für; a=b", "Content-Type: text/plain; a=b"),
        ("Content-Type: text/plain; ä=c; a=b", "Content-Type: text/plain; a=b"),
        (
            "Content-Type: text/plain; charset=us-ascii (für)",
            "Content-Type: text/plain; charset*=utf-8''us-ascii",
        ),
        ("Content-Type: ; a=ä", "Content-Type: ; a*=utf-8''%C3%A4"),
        ("Content-Type: ä", "Content-Type: **"),
    ],
)
def test_a_parameter_field_that_is_broken(field, expected):
    assert re_encoded(field).decode() == expected


def test_other_fields_have_no_parameters():
    made = re_encoded("Content-Location: a; filename=ä.txt")
    assert decoded(made) == "a; filename=ä.txt"


# Addresses


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Prüfer: b@example.org;", [("", "b@example.org")]),
        ("b@example.org (Jörg)", [("Jörg", "b@example.org")]),
        ("b@bücher.example", [("", "b@xn--bcher-kva.example")]),
        ("<b@bücher.example>", [("", "b@xn--bcher-kva.example")]),
        ("<  b@bücher.example >", [("", "b@xn--bcher-kva.example")]),
        ('"a b"@bücher.example', [("", '"a b"@xn--bcher-kva.example')]),
        ('<"a, b"@bücher.example>', [("", '"a, b"@xn--bcher-kva.example')]),
        ("Jörg Müller <b@x.org>", [("Jörg Müller", "b@x.org")]),
        ("Jörg<b@x.org>", [("Jörg", "b@x.org")]),
        ("Dr. J. Müller <b@x.org>", [("Dr. J. Müller", "b@x.org")]),
        ('"Müller, J." <b@x.org>', [("Müller, J.", "b@x.org")]),
        (r'"Müller \"J\" \\" <b@x.org>', [('Müller "J" \\', "b@x.org")]),
        ('Jörg "J, M" Müller <b@x.org>', [("Jörg J, M Müller", "b@x.org")]),
        ('"ä@x.org, c@x.org" <b@x.org>', [("ä@x.org, c@x.org", "b@x.org")]),
        ("ä@x.org <b@x.org>", [("ä@x.org", "b@x.org")]),
        ("Jörg <b@bücher.example>", [("Jörg", "b@xn--bcher-kva.example")]),
        (
            "Jörg <b@x.org>,Ann <a@x.org>, c@x.org",
            [("Jörg", "b@x.org"), ("Ann", "a@x.org"), ("", "c@x.org")],
        ),
        (
            "Gruppe Ö: Jörg <b@x.org>, a@x.org;, Ann <c@x.org>",
            [("Jörg", "b@x.org"), ("", "a@x.org"), ("Ann", "c@x.org")],
        ),
        ("Jörg (ö) M (é) <b@x.org> (ü)", [("Jörg M (öé)", "b@x.org")]),
        ("b@x.org (a (ö b) c)", [("a ö b c", "b@x.org")]),
        (r"b@x.org (ö \( \\ x)", [("ö ( \\ x", "b@x.org")]),
        ("Shop [Öst] <b@x.org>", [("Shop [Öst]", "b@x.org")]),
        ("b@[192.0.2.1] (ö)", [("ö", "b@[192.0.2.1]")]),
        ("Jörg <b@[IPv6:::1]>", [("Jörg", "b@[IPv6:::1]")]),
        ("=?utf-8?q?=C3=84?= Ö <b@x.org>", [("Ä Ö", "b@x.org")]),
        ('"=?utf-8?q?=C3=84?= Ö" <b@x.org>', [("Ä Ö", "b@x.org")]),
        ("ä" * 500 + " <b@x.org>", [("ä" * 500, "b@x.org")]),
        (f'ä <a@x.org>, "{"y z " * 400}" <b@x.org>', None),
    ],
)
@pytest.mark.parametrize("name", ["To", "Resent-Cc", "Disposition-Notification-To"])
def test_an_address(name, value, expected):
    made = re_encoded(f"{name}: {value}")
    if expected is None:
        expected = [("ä", "a@x.org"), ("y z " * 400, "b@x.org")]
    assert [(one.strip(), address) for one, address in pairs(made)] == [
        (one.strip(), address) for one, address in expected
    ]


def test_each_address_field_is_one():
    for name in ["From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Return-Path"]:
        for prefix in ("", "Resent-"):
            made = re_encoded(f'{prefix}{name}: "Ö, x" <b@bücher.example>')
            if (prefix, name) != ("Resent-", "Return-Path"):
                assert pairs(made) == [("Ö, x", "b@xn--bcher-kva.example")]


def test_the_name_of_a_group_and_its_end():
    made = re_encoded("To: Gruppe Ö: b@x.org, c@x.org;, Leere Ü:;")
    groups = [(g.display_name, len(g.addresses)) for g in parsed(made).groups]
    assert groups == [("Gruppe Ö", 2), ("Leere Ü", 0)]


def test_text_in_the_place_of_an_address():
    assert decoded(re_encoded("To: Empfänger unbekannt")) == "Empfänger unbekannt"


def test_a_name_without_foreign_letters_stays_as_it_is():
    made = re_encoded('To: "Ann  (x)"  <a@x.org> (c  d), Jörg <b@x.org>')
    assert made.startswith(b'To: "Ann  (x)"  <a@x.org> (c  d), =?')


def test_many_addresses_without_a_space():
    addresses = [f"a{number}@x.org" for number in range(1000)]
    made = re_encoded(f"To: Jörg <b@x.org>,{','.join(addresses)}")
    assert [address for _, address in pairs(made)] == ["b@x.org", *addresses]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("From: müller@x.org", "From: only SMTPUTF8 can carry 'müller@x.org'"),
        ("To: Ö <müller@x.org>", "To: only SMTPUTF8 can carry 'müller@x.org'"),
        ('Cc: "jörg m"@x.org', 'only SMTPUTF8 can carry \'"jörg m"\''),
        ("To: <jörg>", "only SMTPUTF8 can carry 'jörg'"),
        ("To: Jörg b@x.org", "only SMTPUTF8 can carry 'Jörg'"),
        ("To: b@ü_.org", "'b@ü_.org': its domain cannot be encoded"),
        ("To: <b@x.org, ü", "a bracket has no end: '<b@x.org, ü'"),
        ("To: <b@x.org ü <c@x.org>", "a bracket has no end: '<b@x.org ü '"),
        ('To: "Jörg <b@x.org>', "a quotation mark has no end"),
    ],
)
def test_an_address_that_cannot_be_encoded(field, reason):
    with pytest.raises(MessageError, match=re.escape(reason)):
        re_encoded(field)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("b@x.org (Jörg", b"b@x.org (=?utf-8?b?SsO2cmc=?="),
        ("Jörg <b@x.org", b"=?utf-8?b?SsO2cmc=?= <b@x.org"),
        ("b@x.org) ä", None),
        ("[b@x.org <ann@x.org> ö (", None),
    ],
)
def test_an_address_without_an_end(value, expected):
    if expected is None:
        with pytest.raises(MessageError):
            re_encoded(f"To: {value}")
    else:
        assert re_encoded(f"To: {value}") == b"To: " + expected


# Comments


def test_the_comment_of_a_date():
    made = re_encoded("Date: Mon, 1 Jan 2024 10:10:10 +0200 (Zeit für Österreich)")
    assert parsed(made).datetime.isoformat() == "2024-01-01T10:10:10+02:00"
    assert made.startswith(b"Date: Mon, 1 Jan 2024 10:10:10 +0200 (Zeit\r\n =?")


def test_the_comment_of_another_structured_field():
    made = re_encoded(
        "Received: from x (HELO größe) by <y> (z);\r\n\tMon, 1 Jan 2024 10:10:10 +0200"
    )
    assert made.startswith(b"Received: from x (HELO =?")
    assert made.endswith(b"?=) by <y> (z);\tMon, 1 Jan 2024\r\n 10:10:10 +0200")


def test_what_is_no_comment_of_a_structured_field():
    made = re_encoded("Received: from größe (HELO größe)(ä) by größe(x) ä; 1 Jan 2024")
    shown = decoded(made).replace(") (", ")(")
    assert shown == "from größe (HELO größe)(ä) by größe (x) ä; 1 Jan 2024"
    assert made.startswith(b"Received: from =?")
    assert made.endswith(b"?= 1 Jan\r\n 2024")


def test_a_comment_is_not_folded_where_it_begins():
    made = re_encoded(f"To: {'a' * 50}@x.org (Öffentlichkeitsarbeit)")
    assert b".org\r\n (=?" in made


def test_a_structured_field_that_is_broken():
    assert decoded(re_encoded("Date: früh am Morgen (x)")) == "früh am Morgen (x)"


# Any names and addresses

LETTERS = st.sampled_from(
    [*"abc äöüßéñ日本ж \xa0", *',;:<>@()[]."\\', "\N{PILE OF POO}", "ä ", "=?", "x y"]
)
TEXT = st.lists(LETTERS, min_size=1, max_size=30).map("".join).map(str.strip)
LONG_TEXT = st.lists(TEXT, min_size=1, max_size=20).map(" ".join)
ATOMS = st.text("abcäöü日ж", min_size=1, max_size=40)
DOMAIN = st.sampled_from(
    ["x.org", "bücher.example", "größe.example", "例え.example", "a.пример.example"]
)
LOCAL = st.sampled_from(["a", "b.c", "d+e", '"f g"', '"h, i"', '"j@k"', r'"l\"m"'])
SPACE = st.sampled_from([" ", "  ", "\t", "\r\n ", "\r\n\t "])


def quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def comment(text: str) -> str:
    return "(" + re.sub(r"([()\\])", r"\\\1", text) + ")"


@st.composite
def mailboxes(draw) -> tuple[str, str, str]:
    """Return a mailbox as it is written, the name that it has, and the address."""
    address = f"{draw(LOCAL)}@{draw(DOMAIN)}"
    space = draw(SPACE)
    form = draw(st.sampled_from(["bare", "angle", "quoted", "atoms", "comment"]))
    if form == "bare":
        return address, "", address
    if form == "angle":
        return f"<{address}>", "", address
    if form == "quoted":
        name = draw(LONG_TEXT)
        return f"{quoted(name)}{space}<{address}>", name, address
    if form == "atoms":
        name = draw(st.lists(ATOMS, min_size=1, max_size=8).map(" ".join))
        return f"{name}{space}<{address}>", name, address
    # A comment is no part of a name, whatever is in it.
    return f"{address} {comment(draw(TEXT))}", "", address


@st.composite
def lists(draw):
    """Return an address field's value, and its names, addresses, names of groups."""
    written, found, groups = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        several = draw(st.lists(mailboxes(), min_size=1, max_size=4))
        text = ("," + draw(SPACE)).join(one for one, _, _ in several)
        if draw(st.booleans()):
            name = draw(TEXT.filter(bool))
            text = f"{quoted(name)}: {text};"
            groups.append(name)
        written.append(text)
        found += [(name, address) for _, name, address in several]
    return ", ".join(written), found, groups


def squeezed(text: str) -> str:
    """Without white space: some readers show it between two encoded words."""
    return re.sub(r"\s", "", text)


@settings(deadline=None, max_examples=300)
@given(lists(), st.sampled_from(["From", "To", "Reply-To", "Resent-Bcc"]))
@example(('"a@evil.org, Ä" <b@x.org>', [("a@evil.org, Ä", "b@x.org")], []), "To")
def test_addresses_and_names_are_the_same(drawn, name):
    value, expected, groups = drawn
    made = re_encoded(f"{name}: {value}")
    addresses = [on_the_wire(address) for _, address in expected]
    field = parsed(made)
    assert [one.addr_spec for one in field.addresses] == addresses
    assert [squeezed(one.display_name) for one in field.addresses] == [
        squeezed(one) for one, _ in expected
    ]
    named = [group.display_name for group in field.groups if group.display_name]
    assert [squeezed(one) for one in named] == [squeezed(one) for one in groups]
    assert [address for _, address in pairs(made) if address] == addresses


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXT, max_size=30), SPACE, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_any_text(texts, space, charset):
    text = space.join(texts)
    made = re_encoded(f"Subject: {text}".encode())
    expected = text.replace("\r\n", "").strip(" \t")
    if text.isascii():
        assert made == f"Subject: {text}".encode()
    elif "=?" not in text:
        assert decoded(made) == expected
        assert str(parsed(made)) == expected


@settings(deadline=None, max_examples=300)
@given(
    LONG_TEXT,
    st.sampled_from(["Content-Type: a/b; name", "Content-Disposition: a; filename"]),
)
def test_any_file_name(text, field):
    written = f"{field}={quoted(text)}; x=y"
    made = parsed(re_encoded(written))
    if text.isascii():
        before = message_from_string(f"{written}\r\n\r\n", policy=default)
        assert made == before[made.name]
    else:
        assert dict(made.params) == {field.split("; ")[1]: text, "x": "y"}


TOKENS = [
    *["ä", "Jörg", "b c", "a@b.org", "<c@d.org>", "<e@ü.example>", "f@ü.example"],
    *["(ö)", "(x)", '"ö"', '"y, z"', "=?latin1?q?=E4?=", "G:", " ", "\t", "\r\n "],
    *'()<>[],;:.@\\"',
]


def readable(text: str) -> list[str]:
    """Return the ordinary addresses of a field, as a lenient reader finds them."""
    found = [re.sub(r".*<([^<>]*)>.*", r"\1", one) for one in header_addresses(text)]
    return [
        on_the_wire(one.strip())
        for one in found
        if re.fullmatch(r"[a-z.]+@[\w.-]+", one.strip())
    ]


@pytest.mark.parametrize("seed", range(10))
def test_a_field_in_disorder_keeps_its_addresses(seed):
    """Whatever a lenient reader finds in it, no other address, and none is lost."""
    chance = random.Random(seed)
    encoded = 0
    for _ in range(300):
        value = "".join(chance.choices(TOKENS, k=chance.randint(1, 14))).strip()
        value = value.replace('"', "") if chance.random() < 0.8 else value
        try:
            made = re_encoded(f"To: {value}ä")
            before = readable(f"{value}ä".replace("\r\n", ""))
        except (AddressError, MessageError):
            continue
        encoded += 1
        text = made.decode().replace("\r\n", "").partition(":")[2]
        if '"' not in value:
            assert readable(text) == before, value
    assert encoded > 100


PIECES = ["*=", "*0*=", "''", "=?latin1?q?=E4?=", "(ö)", '"ö"', "<a@ü.org>", "a@x.org"]


@settings(deadline=None, max_examples=1000)
@given(
    st.lists(
        st.one_of(LETTERS, st.text(max_size=3), st.sampled_from(PIECES)),
        max_size=40,
    ).map("".join),
    st.sampled_from(["To", "Subject", "Content-Type", "Date", "Content-Disposition"]),
    st.sampled_from(["utf-8", "iso-8859-1", "utf-16-le"]),
)
@example("a" * 60 + "(" + "ö" * 20 + ")" * 60 + "b" * 30 + "(ö)" * 30, "Date", "utf-8")
@example("a" * 60 + "(b" + "ö" * 20 + ")" * 60 + "b" * 30 + "(ö)" * 30, "To", "utf-8")
def test_whatever_is_in_a_field(value, name, charset):
    raw = value.encode(charset, "replace").replace(b"\r", b"").replace(b"\n", b"")
    try:
        re_encoded(f"{name}: ".encode() + raw)
    except MessageError:
        assert name == "To"
