"""Header fields of message objects: their addresses, and what goes on the wire."""
from __future__ import annotations

import os
from collections.abc import Callable
from email import message_from_bytes
from email import message_from_string
from email import policy
from email import utils
from email.errors import HeaderParseError
from email.header import Header
from email.header import decode_header
from email.header import make_header
from email.headerregistry import Address
from email.headerregistry import Group
from email.message import EmailMessage
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import Policy
from email.utils import getaddresses
from email.utils import quote
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit._mail.address import on_the_wire
from postcommit._mail.message import Composed
from postcommit._mail.message import compose
from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.interfaces import Sendable


def address(name: str, at: str) -> Address:
    return Address(name, addr_spec=at)


def mail(to: object, *, of: Policy = policy.default, **fields: object) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "shop@example.org"
    message["To"] = to
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content("Text.\n")
    message.policy = of
    return message


def sent(message: Sendable) -> Composed:
    return compose(None, None, message)


def on_wire(composed: Composed) -> EmailMessage:
    """Return the message as a reader with UTF-8 and RFC 2047 understands it."""
    return message_from_string(bytes(composed).decode(), policy=policy.default)


def pairs(message: Message, name: str = "To") -> list[tuple[str, str]]:
    value = message[name]
    return [(one.display_name, one.addr_spec) for one in value.addresses]


# Recipients are those of the object


EVIL = "eve@evil.example, mallory@evil.example, trudy@evil.example, oscar@evil.example"

LISTS = {
    "a name that is folded": [
        ("Änne Große", "u0@example.org"),
        ("Großmann, Änne (Öffentlichkeitsarbeit)", "u1@example.org"),
        ("Team “Nord”", "u2@example.org"),
    ],
    "addresses in a name": [(f"{EVIL}, Ann", "ann@example.org")],
    "addresses in a name that is not ASCII": [(f"{EVIL}, Änne", "ann@example.org")],
    "a comma after an encoded word": [
        ("Änne Müller", "u0@example.org"),
        ("Maria", "u1@example.org"),
        ("Bob", "u2@example.org"),
    ],
    "longer than any line": [
        (f"Nr. {number}, {EVIL}", f"u{number}@example.org") for number in range(30)
    ],
    "one name longer than any line": [(f"{EVIL}, " * 20, "ann@example.org")],
    "one word longer than any line": [("@," * 900, "ann@example.org")],
    "quotes and backslashes": [('Ann "\\" <eve@evil.example>,', "ann@example.org")],
    "an encoded word as a name": [
        ("=?utf-8?q?eve=40evil=2Eexample=2C?=", "ann@example.org")
    ],
    "a colon": [("eve@evil.example:", "ann@example.org")],
    "a group in a name": [("eve@evil.example: bob@evil.example;", "ann@example.org")],
}

POLICIES = {
    "default": policy.default,
    "SMTP": policy.SMTP,
    "SMTPUTF8": policy.SMTPUTF8,
    "no limit": policy.default.clone(max_line_length=0),
    "short": policy.default.clone(max_line_length=40),
    "seven bits": policy.default.clone(cte_type="7bit"),
}


@pytest.mark.parametrize("of", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
def test_the_recipients_and_their_names_are_those_of_the_object(
    listed: list[tuple[str, str]], of: Policy
) -> None:
    composed = sent(mail([address(*pair) for pair in listed], of=of))
    wanted = [at for _, at in listed]
    assert list(composed.recipients) == wanted
    assert [at for _, at in pairs(on_wire(composed))] == wanted
    assert [at for _, at in getaddresses([on_wire_text(composed)], **LENIENT)] == wanted
    assert max(map(len, composed.header.splitlines())) <= 998


# Newer versions of Python find no address at all if one of several has a literal.
LENIENT = {"strict": False} if hasattr(utils, "supports_strict_parsing") else {}


def on_wire_text(composed: Composed) -> str:
    read = message_from_bytes(bytes(composed), policy=policy.compat32)
    return str(read["To"])


@pytest.mark.parametrize("name", ["To", "Cc", "Bcc"])
def test_each_field_with_recipients_is_read_from_the_object(name: str) -> None:
    message = mail("other@example.org")
    del message["To"]
    message[name] = address(f"{EVIL}, Ann", "ann@example.org")
    assert sent(message).recipients == ("ann@example.org",)


@pytest.mark.parametrize("name", ["Sender", "From"])
def test_the_sender_is_read_from_the_object(name: str) -> None:
    message = mail("bob@example.org")
    del message["From"]
    message[name] = address(f"{EVIL}, Ann", "ann@example.org")
    composed = sent(message)
    assert composed.sender == "ann@example.org"
    assert composed.message_id.endswith("@example.org")


def test_the_members_of_a_group_are_recipients() -> None:
    members = (address("Büro, Nord", "a@example.org"), address("", "b@example.org"))
    composed = sent(mail(Group("Prüfer: alle", members)))
    assert composed.recipients == ("a@example.org", "b@example.org")
    read = on_wire(composed)["To"]
    assert [group.display_name for group in read.groups] == ["Prüfer: alle"]


def test_an_object_of_the_older_class() -> None:
    message = Message()
    message["From"] = "Jörg <joerg@example.org>"
    message["To"] = '"Bö, the first" <b@example.org>, Cö <c@example.org>'
    message["Cc"] = Header("Dö <d@example.org>", "utf-8")
    message.set_payload("x")
    composed = sent(message)
    assert composed.sender == "joerg@example.org"
    assert composed.recipients == tuple(f"{name}@example.org" for name in "bcd")
    read = on_wire(composed)
    assert pairs(read) == [("Bö, the first", "b@example.org"), ("Cö", "c@example.org")]
    assert pairs(read, "Cc") == [("Dö", "d@example.org")]


def test_an_object_that_was_read_from_bytes() -> None:
    data = 'From: a@x.org\nTo: "Ö, one" <b@x.org>,\n\tÖ <c@x.org>\n\nx\n'.encode()
    for of in (policy.compat32, policy.default):
        composed = sent(message_from_bytes(data, policy=of))
        assert composed.recipients == ("b@x.org", "c@x.org")
        assert bytes(composed).endswith(data)


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
@pytest.mark.parametrize("times", [1, 300])
def test_a_field_of_eight_bits_is_encoded_only_if_it_has_to_be(
    times: int, charset: str
) -> None:
    subject = "Füße " * times
    data = f"From: a@x.org\nSubject: {subject}\n\nx\n".encode(charset)
    for of in (policy.default, policy.SMTP.clone(cte_type="7bit")):
        composed = compose(None, "b@x.org", message_from_bytes(data, policy=of))
        if times == 1 and of.cte_type == "8bit":
            assert bytes(composed).endswith(data)
        else:
            assert composed.header.isascii()
            assert on_wire(composed)["Subject"] == subject.strip()
            assert max(map(len, composed.header.splitlines())) <= 76


def test_an_address_object_in_a_message_of_the_older_class() -> None:
    message = MIMEText("Text.")
    message["To"] = address("Müller, Ann", "ann@x.org")
    composed = compose("a@x.org", None, message)
    assert composed.recipients == ("ann@x.org",)
    assert pairs(on_wire(composed)) == [("Müller, Ann", "ann@x.org")]


def test_an_encoded_name_with_a_comment_keeps_both() -> None:
    message = mail("=?utf-8?q?=C3=84nn?= =?utf-8?q?e?= (Büro) <ann@x.org>")
    composed = sent(message)
    assert composed.recipients == ("ann@x.org",)
    assert [at for _, at in pairs(on_wire(composed))] == ["ann@x.org"]
    assert str(make_header(decode_header(on_wire_text(composed)))).split() == [
        *("Änne", "(Büro)", "<ann@x.org>")
    ]


def test_a_file_name_in_a_value_of_the_older_class() -> None:
    message = MIMEText("Text.")
    message["Content-Disposition"] = 'attachment; filename="Rechnung für Ann.pdf"'
    read = on_wire(compose("a@x.org", "b@x.org", message))
    assert read.get_filename() == "Rechnung für Ann.pdf"


def test_bytes_whose_recipients_are_encoded_as_a_whole() -> None:
    value = Header("Bö <b@x.org>, Cö <c@x.org>", "utf-8").encode(maxlinelen=40)
    composed = compose("a@x.org", None, f"To: {value}\n\nx\n".encode())
    assert composed.recipients == ("b@x.org", "c@x.org")


@pytest.mark.parametrize(
    "to",
    [
        "=?utf-8?q?eve=40evil.example=2C?= <ann@x.org>",
        "=?utf-8?q?eve=40evil.example?=, ann@x.org",
        "=?utf-8?q?eve=40evil.example?= ann@x.org",
    ],
)
def test_an_encoded_word_beside_an_address_adds_no_recipient(to: str) -> None:
    try:
        recipients = compose("a@x.org", None, f"To: {to}\n\n").recipients
    except AddressError:
        recipients = ("ann@x.org",)  # refused: nobody gets it
    assert recipients == ("ann@x.org",)


def test_many_encoded_words_take_time_in_proportion_to_their_number() -> None:
    value = "=?utf-8?q?a?=" * 100_000
    with pytest.raises(AddressError):
        compose("a@x.org", None, f"To: {value}\n\n")
    value = "=?utf-8?b?YUB4Lm9yZyw=?= " * 100_000
    assert compose("a@x.org", None, f"To: {value}\n\n").recipients == ("a@x.org",)


# A line break in a value


BREAKS = ["\n", "\r", "\r\n", "\n \n", "\r\r\n ", *"\x0b\x0c\x1c\x1d\x1e\x85\u2028"]


@pytest.mark.parametrize("line_break", BREAKS)
@pytest.mark.parametrize("field", ["Bcc :eve@evil.example", "Sender :eve@evil.example"])
def test_a_line_break_in_a_value_begins_no_other_field(
    field: str, line_break: str
) -> None:
    message = MIMEText("Text.")
    message["From"] = "shop@example.org"
    message["To"] = "ann@example.org"
    message["Subject"] = f"hi{line_break}{field}"
    try:
        composed = sent(message)
    except MessageError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "Subject" in refused
        return
    assert composed.sender == "shop@example.org"
    assert composed.recipients == ("ann@example.org",)
    names = [line.partition(b":")[0] for line in composed.header.splitlines()]
    assert not {b"Bcc ", b"Sender "} & set(names)


@pytest.mark.parametrize(
    "value", ["hi\nBcc :eve@evil.example", "hi\x0bBcc :e@x", "\nYour order\n", "a\n\nb"]
)
def test_a_line_break_that_is_not_a_fold_is_refused(value: str) -> None:
    message = MIMEText("Text.")
    message["Subject"] = value
    with pytest.raises(MessageError, match=r"'Subject'.*line break"):
        compose("a@x.org", "b@x.org", message)


def test_a_line_break_that_the_generator_refuses_is_named_with_its_field() -> None:
    message = Message()
    message["Subject"] = Header("x\nBcc: eve@x.org")
    with pytest.raises(MessageError, match=r"header field 'Subject': .* embedded"):
        compose("a@x.org", "b@x.org", message)


def test_a_line_break_in_the_header_of_a_part_is_refused() -> None:
    part = MIMEText("Text.")
    part["Content-Description"] = "\nhidden"
    message = MIMEMultipart()
    message.attach(part)
    with pytest.raises(MessageError, match=r"'Content-Description'.*line break"):
        compose("a@x.org", "b@x.org", message)


@pytest.mark.parametrize("name", ["X\nBcc", "X Bcc", "", "X:"])
def test_a_name_that_is_not_the_name_of_a_field_is_refused(name: str) -> None:
    message = MIMEText("Text.")
    message.set_raw(name, "x")  # Python 3.14 refuses message[name] = "x"
    with pytest.raises(MessageError, match="header field"):
        compose("a@x.org", "b@x.org", message)


@pytest.mark.parametrize("value", ["a\n b", "a\r\n\tb", "a\n b\n c", "a\n"])
def test_a_fold_in_a_value_is_kept_or_joined(value: str) -> None:
    message = MIMEText("Text.")
    message["Subject"] = value
    composed = compose("a@x.org", "b@x.org", message)
    assert str(on_wire(composed)["Subject"]).split() == value.split()


@given(
    st.text(st.sampled_from("aö:@ \t\n\r\x0b\x0c\x1c\x85\u2028"), max_size=12),
    st.sampled_from(["Subject", "X-Tag", "Reply-To", "To", "Content-Description"]),
    st.sampled_from([policy.compat32, policy.default, policy.SMTP]),
)
def test_any_value_becomes_one_field_or_is_refused(
    value: str, name: str, of: Policy
) -> None:
    message = Message(policy=of)
    message["X-First"] = "1"
    message.set_raw(name, value)
    message["X-Last"] = "2"
    message.set_payload("Text.")
    try:
        composed = compose("a@x.org", "b@x.org", message)
    except MessageError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert name in refused
        return
    names = message_from_bytes(bytes(composed)).keys()
    assert names == ["Message-Id", "Date", "X-First", name, "X-Last"]


# Domains that are not ASCII


@pytest.mark.parametrize("of", POLICIES.values(), ids=POLICIES)
def test_a_domain_that_is_not_ascii_is_in_a_labels(of: Policy) -> None:
    message = mail("Bob <bob@bücher.example>", of=of, Reply_To="x@bücher.example")
    message["Resent-From"] = "Größe <y@bücher.example>"
    composed = sent(message)
    assert on_wire_text(composed) == "Bob <bob@xn--bcher-kva.example>"
    assert composed.header.count(b"@xn--bcher-kva.example") == 3
    assert on_wire(composed)["To"].addresses[0].addr_spec == "bob@xn--bcher-kva.example"
    assert [on_the_wire(to) for to in composed.recipients] == [
        "bob@xn--bcher-kva.example"
    ]


def test_a_local_part_that_is_not_ascii_stays_as_it_is() -> None:
    composed = sent(mail("Bö <jörg@bücher.example>"))
    assert composed.recipients == ("jörg@bücher.example",)
    assert pairs(on_wire(composed)) == [("Bö", "jörg@bücher.example")]


# Objects that are hard to parse


@pytest.mark.parametrize(
    "to",
    [
        "unlisted-recipients:; (no To-header on input)",
        "a@b.org, :;",
        "(" * 400 + ")" * 400,
        "(\n " * 400 + ")" * 400,
        ", ".join(f"u{number}@example.org" for number in range(4000)),
    ],
    ids=["unlisted", "empty group", "nested", "nested and folded", "many"],
)
def test_a_field_that_is_not_needed_is_not_parsed(to: str) -> None:
    data = f"Message-Id: <1@x>\nDate: x\nTo: {to}\n\nx\n".encode()
    message = message_from_bytes(data, policy=policy.default)
    composed = compose("a@x.org", "b@x.org", message)
    assert bytes(composed).split() == data.split()
    assert max(map(len, composed.header.splitlines())) <= 998


def test_the_recipients_of_a_long_field_are_read_without_the_standard_library() -> None:
    wanted = [f"u{number}@example.org" for number in range(4000)]
    data = f"To: {', '.join(wanted)}\n\nx\n".encode()
    message = message_from_bytes(data, policy=policy.default)
    assert list(compose("a@x.org", None, message).recipients) == wanted


# Any names and addresses


# Number of lists for each of the 18 forms and policies: 20,000 in all.
LISTS_TRIED = int(os.environ.get("POSTCOMMIT_EXAMPLES", 1112))

NAME_PARTS = [
    *("Ann", "Müller", "Ω", "李", "🫖", "O'Neil", "d.", "a" * 90, "ä" * 90),
    *(" ", "  ", "\t", ",", ";", ":", "@", "<", ">", "(", ")", "[", "]", "."),
    *('"', "\\", "=?", "?=", "=?utf-8?q?x?=", "=?utf-8?b?YQ==?=", "eve@evil.example"),
    *("<eve@evil.example>", ", eve@evil.example,", "\u2028", "\xa0", "\ufeff", "é"),
]
LOCAL_PARTS = ["ann", "o'neil+tag", "a.b", "x" * 60, '"a b"', '"a,b"', '"<a>"', "=?x?="]
DOMAINS = ["example.org", "bücher.example", "xn--bcher-kva.example", "[127.0.0.1]"]


def random_list(random: Random) -> list[tuple[str, str]]:
    listed: dict[str, str] = {}
    for number in range(random.randint(1, 5)):
        parts = random.choices(NAME_PARTS, k=random.randint(0, 8))
        local = random.choice(LOCAL_PARTS).replace("a", f"a{number}")
        at = f"{local}@{random.choice(DOMAINS)}"
        listed[on_the_wire(at)] = "".join(parts).strip()
    return [(name, at) for at, name in listed.items()]


def as_objects(listed: list[tuple[str, str]], of: Policy) -> Message:
    return mail([address(*pair) for pair in listed], of=of)


def as_group(listed: list[tuple[str, str]], of: Policy) -> Message:
    members = tuple(address(*pair) for pair in listed)
    return mail(Group(f"{listed[0][0]} team", members), of=of)


def as_text(listed: list[tuple[str, str]], of: Policy) -> Message:
    return mail(written(listed), of=of)


def as_the_older_class(listed: list[tuple[str, str]], of: Policy) -> Message:
    message = MIMEText("Text.")
    message["From"] = "shop@example.org"
    message["To"] = written(listed)
    return message


def as_bytes(listed: list[tuple[str, str]], of: Policy) -> bytes:
    return f"From: shop@example.org\nTo: {written(listed)}\n\nText.\n".encode()


def as_read(listed: list[tuple[str, str]], of: Policy) -> Message:
    return message_from_bytes(as_bytes(listed, of), policy=of)


def written(listed: list[tuple[str, str]]) -> str:
    return ", ".join(f'"{quote(name)}" <{at}>' for name, at in listed)


@pytest.mark.parametrize("of", [policy.default, policy.SMTPUTF8, POLICIES["short"]])
@pytest.mark.parametrize(
    "form", [as_objects, as_group, as_text, as_the_older_class, as_bytes, as_read]
)
def test_any_names_and_addresses_reach_exactly_these_addresses(
    form: Callable[[list[tuple[str, str]], Policy], Sendable], of: Policy
) -> None:
    for number in range(LISTS_TRIED):
        seed = f"{form.__name__} {of.utf8} {of.max_line_length} {number}"
        listed = random_list(Random(seed))
        try:
            message = form(listed, of)
        except (ValueError, IndexError, HeaderParseError):
            continue  # the standard library does not take it
        composed = sent(message)
        wanted = [at for _, at in listed]
        assert [*map(on_the_wire, composed.recipients)] == wanted, seed
        if not isinstance(message, bytes):
            assert [*map(on_the_wire, mailboxes(composed))] == wanted, seed


def mailboxes(composed: Composed) -> list[str]:
    """Return the mailboxes in To, as the standard library's older class reads them."""
    read = message_from_string(bytes(composed).decode())
    return [at for _, at in getaddresses([read["To"]], **LENIENT)]
