"""Addresses: what is taken, and what is refused by name."""
from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit._mail.address import domain_in_ascii
from postcommit._mail.address import header_addresses
from postcommit._mail.address import needs_smtputf8
from postcommit._mail.address import on_the_wire
from postcommit._mail.address import parse_address
from postcommit._mail.address import parse_recipients
from postcommit._mail.address import parse_sender
from postcommit._mail.address import split_addresses
from postcommit.errors import AddressError
from postcommit.errors import AddressTypeError


@pytest.mark.parametrize(
    ("given_", "bare"),
    [
        ("ann@example.org", "ann@example.org"),
        (b"ann@example.org", "ann@example.org"),
        (" ann@example.org ", "ann@example.org"),
        ("<ann@example.org>", "ann@example.org"),
        ("\tAnn\t<ann@example.org>\t", "ann@example.org"),
        ("Ann <ann@example.org>", "ann@example.org"),
        ('"Example, Ann" <ann@example.org>', "ann@example.org"),
        ("=?utf-8?q?J=C3=B6rg?= <joerg@example.org>", "joerg@example.org"),
        ("Jörg <jörg@example.org>", "jörg@example.org"),
        ("root@localhost", "root@localhost"),
        ("Postmaster", "Postmaster"),
        ("o'neil+tag@example.org", "o'neil+tag@example.org"),
        ("a..b.@example.org", "a..b.@example.org"),
        ('"a b"@example.org', '"a b"@example.org'),
        ('"a@b,c"@example.org', '"a@b,c"@example.org'),
        (r'"a\"b"@example.org', r'"a\"b"@example.org'),
        ("ann@[127.0.0.1]", "ann@[127.0.0.1]"),
        ("ann@[IPv6:2001:db8::1]", "ann@[IPv6:2001:db8::1]"),
        ("ann@[ipv6:::1]", "ann@[ipv6:::1]"),
        ("ann@bücher.example", "ann@bücher.example"),
        ("ann@under_score.example", "ann@under_score.example"),
    ],
)
def test_an_address_becomes_a_bare_one(given_: str | bytes, bare: str) -> None:
    assert parse_address(given_) == bare
    assert parse_sender(given_) == bare
    assert parse_recipients(given_) == (bare,)
    assert parse_recipients([given_]) == (bare,)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "empty"),
        ("ann\t@example.org", "space"),
        ('"a\tb"@example.org', "space"),
        ("  ", "empty"),
        ("Ann <>", "empty"),
        ("ann", "before and after an @"),
        ("@example.org", "before and after an @"),
        ("ann@", "before and after an @"),
        ('""ann@example.org', "before and after an @"),
        ("ann@example.org\nX-Zope-To: eve@example.org", "line break"),
        ("ann@example.org\r\n", "line break"),
        ("\nann@example.org", "line break"),
        ("Ann\n <ann@example.org>", "line break"),
        ("ann\0@example.org", "control"),
        ("ann\x7f@example.org", "control"),
        ("ann\x85@example.org", "control"),
        ("ann@example.org\u2028", "line break"),
        ("ann\ud800@example.org", "control"),
        ("ann smith@example.org", "space"),
        ("ann@exam ple.org", "space"),
        ("ann\u3000@example.org", "space"),
        ('"ann"@exam ple.org', "space"),
        ("ann@example.org, bob@example.org", "list"),
        ("ann@example.org;bob@example.org", "list"),
        ("<ann@example.org> Ann", "space"),
        ("<ann@example.org", "only a quoted local part"),
        ("ann@bob@example.org", "only a quoted local part"),
        ("a(b)@example.org", "only a quoted local part"),
        ("ann@example..org", "not a domain"),
        ("ann@example.org.", "not a domain"),
        ("ann@-example.org", "not a domain"),
        ("ann@exam>ple.org", "not a domain"),
        ("ann@[127.0.0.1", "not a domain"),
        (f"ann@{'x' * 64}.org", "not a domain"),
        ("ann@bü..example", "not a domain"),
        ("ann@.bücher.example", "not a domain"),
        ("ann@bücher.example.", "not a domain"),
        ("ann@bücher.example\u3002", "not a domain"),
        ("ann\ufffd@example.org", "lost in decoding"),
        (f"{'x' * 250}@example.org", "longer than 254"),
        (b"ann\xff@example.org", "not UTF-8"),
    ],
)
def test_a_bad_address_is_refused_by_name(bad: str | bytes, reason: str) -> None:
    with pytest.raises(AddressError, match=reason) as caught:
        parse_address(bad)
    assert isinstance(caught.value, ValueError)
    assert caught.value.address == bad
    assert repr(bad) in str(caught.value)
    with pytest.raises(AddressError):
        parse_recipients(["ann@example.org", bad])


def test_an_address_that_is_a_message_by_mistake_does_not_fill_the_log() -> None:
    for mistake in ("x" * 10**6, b"x" * 10**6, [{"x": "x" * 10**6}]):
        with pytest.raises(AddressError) as caught:
            parse_recipients(mistake)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 1000


class Markup(str):
    """As templates have it: what is put beside it gets escaped."""

    __slots__ = ()

    def __str__(self) -> str:
        return "escaped"

    def __radd__(self, other: str) -> str:
        return "escaped"


def test_any_kind_of_str_becomes_a_plain_one() -> None:
    for text in ("ann@example.org", "Ann <ann@example.org>"):
        address = parse_address(Markup(text))
        assert type(address) is str
        assert address == "ann@example.org"


@pytest.mark.parametrize("bad", [None, 3, ["ann@example.org"]])
def test_what_is_no_text_is_a_type_error(bad: object) -> None:
    with pytest.raises(AddressTypeError) as caught:
        parse_address(bad)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    with pytest.raises(AddressTypeError):
        parse_recipients([bad])  # type: ignore[list-item]


def test_recipients_that_are_no_iterable_are_a_type_error() -> None:
    with pytest.raises(AddressTypeError, match="3"):
        parse_recipients(3)  # type: ignore[arg-type]


class Row:
    """A row of a database, whose values have names and no order."""

    def __getitem__(self, name: str) -> str:
        return {"address": "ann@example.org"}[name]


def test_recipients_that_have_names_and_no_order_are_a_type_error() -> None:
    with pytest.raises(AddressTypeError, match="Row"):
        parse_recipients(Row())  # type: ignore[arg-type]


@pytest.mark.parametrize("null", ["", b"", "<>", b"<>"])
def test_the_null_sender_is_a_sender_but_no_recipient(null: str | bytes) -> None:
    assert parse_sender(null) == ""
    with pytest.raises(AddressError):
        parse_recipients([null])


@pytest.mark.parametrize("nobody", [[], (), iter([]), {}])
def test_no_recipients_are_refused(nobody: list[str]) -> None:
    with pytest.raises(AddressError, match=r"^no recipients: toaddrs is "):
        parse_recipients(nobody)


def test_each_recipient_stands_once_and_in_order() -> None:
    wanted = (a for a in ["b@x.org", "a@x.org", "B <b@x.org>", b"c@x.org"])
    assert parse_recipients(wanted) == ("b@x.org", "a@x.org", "c@x.org")


def test_two_spellings_of_a_domain_are_one_mailbox() -> None:
    wanted = ["a@bücher.example", "a@xn--bcher-kva.example", "a@BÜCHER.example"]
    assert parse_recipients(wanted) == ("a@bücher.example",)
    wanted = ["a@x.org", "a@X.ORG", "A@x.org", "Postmaster", "postmaster"]
    assert parse_recipients(wanted) == ("a@x.org", "A@x.org", "Postmaster")
    wanted = ["jö@bücher.example", "jö@xn--bcher-kva.example", "jo@bücher.example"]
    assert parse_recipients(wanted) == ("jö@bücher.example", "jo@bücher.example")


@given(st.one_of(st.text(), st.binary()))
def test_whatever_is_taken_is_harmless_in_an_envelope(value: str | bytes) -> None:
    try:
        address = parse_address(value)
    except AddressError:
        return
    assert not re.search("[\r\n\0]", address)
    assert address.encode("utf-8")
    assert parse_address(address) == address
    assert address.lower() == "postmaster" or "@" in address
    if not address.startswith('"'):
        assert not re.search(r"[\s<>,;]", address)


@given(st.text(st.characters(codec="ascii"), max_size=12))
def test_no_text_around_an_address_smuggles_another_one_in(noise: str) -> None:
    for value in (f"{noise}ann@example.org", f"ann@example.org{noise}"):
        try:
            address = parse_address(value)
        except AddressError:
            continue
        assert address.count("@") == 1 or address.startswith('"')
        assert "\n" not in address


ADDRESSES = st.builds(
    "{}@{}".format,
    st.from_regex(r"[a-z0-9.+é]{1,12}|\"[ a-z,@]{1,8}\"", fullmatch=True),
    st.sampled_from(["example.org", "bücher.example", "[127.0.0.1]", "x"]),
)


@given(st.lists(ADDRESSES, min_size=1, max_size=5, unique=True))
def test_a_list_that_was_joined_is_split_again(addresses: list[str]) -> None:
    joined = ", ".join(addresses)
    assert split_addresses(joined) == addresses
    assert parse_recipients(split_addresses(joined)) == tuple(addresses)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ('"A, B" <a@x.org>, c@x.org', ['"A, B" <a@x.org>', "c@x.org"]),
        (r'"A\", B" <a@x.org>, c@x.org', [r'"A\", B" <a@x.org>', "c@x.org"]),
        ("a@x.org (b, c),, d@x.org ,", ["a@x.org (b, c)", "d@x.org"]),
        ("a@x.org (b (c), d), e@x.org", ["a@x.org (b (c), d)", "e@x.org"]),
        (r"a@x.org (b \), c), e@x.org", [r"a@x.org (b \), c)", "e@x.org"]),
        ('a@x.org (b " c), e@x.org', ['a@x.org (b " c)', "e@x.org"]),
        ("<f,g@x.org>, e@x.org", ["<f,g@x.org>", "e@x.org"]),
        ('<"f>,"@x.org>, e@x.org', ['<"f>,"@x.org>', "e@x.org"]),
        ("e@[IPv6:::1], f@x.org", ["e@[IPv6:::1]", "f@x.org"]),
        ("[x <a@x.org>, f@x.org", ["[x <a@x.org>", "f@x.org"]),
        ('"a, b@x.org', ['"a, b@x.org']),
        ("(a, b@x.org\\", ["(a, b@x.org\\"]),
        ("<a, b@x.org", ["<a, b@x.org"]),
        (" , ", []),
        ("", []),
    ],
)
def test_a_list_is_split_outside_of_quotes_comments_and_brackets(
    text: str, pieces: list[str]
) -> None:
    assert split_addresses(text) == pieces


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("a@x.org (one), b@x.org", ["a@x.org", "b@x.org"]),
        ("Ann(one)Lee <a@x.org>", ["a@x.org"]),
        ("Ann\u2028 <a@x.org> (one)", ["a@x.org"]),
        ("Ann < a@x.org >", ["a@x.org"]),
        ("a . b (one) @ x . org", ["a.b@x.org"]),
        ('"a . b" @x.org', ['"a . b" @x.org']),
        ("Ann <a@x.org> Lee", ["Ann <a@x.org> Lee"]),
        ("Ann <a@x.org", ["Ann <a@x.org"]),
        ("Ann <>", ["<>"]),
        ("Friends: a@x.org, b@x.org;, c@x.org", ["a@x.org", "b@x.org", "c@x.org"]),
        ('"My, dear: friends": a@x.org; c@x.org', ["a@x.org", "c@x.org"]),
        ('"a:b;c" <a@x.org>, d@[IPv6:::1]', ["a@x.org", "d@[IPv6:::1]"]),
        ("undisclosed-recipients:;", []),
        ("(nobody)", []),
    ],
)
def test_a_fields_value_has_comments_and_groups(
    text: str, addresses: list[str]
) -> None:
    assert header_addresses(text) == addresses


@given(st.text(st.sampled_from('a@x.,;:<>()[]"\\ ')))
def test_a_list_loses_nothing_but_commas(text: str) -> None:
    pieces = split_addresses(text)
    kept = [c for c in text if c not in ", "]
    assert [c for piece in pieces for c in piece if c not in ", "] == kept
    try:
        found = header_addresses(text)
    except AddressError:
        assert ":" in text
        return
    for address in found:
        assert address.strip() == address != ""


@pytest.mark.parametrize("unit", ["<", '"', '\\"', "(", "()", '""', "<>", "[", ":"])
def test_the_time_to_split_grows_with_the_length_only(unit: str) -> None:
    text = unit * (60_000 // len(unit))
    before = time.process_time()
    for value in (text, f'"{text}', f"({text}", f"<{text}"):
        split_addresses(value)
        header_addresses(value)
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    ("address", "wire", "smtputf8"),
    [
        ("ann@example.org", "ann@example.org", False),
        ("ann@bücher.example", "ann@xn--bcher-kva.example", False),
        ("jörg@example.org", "jörg@example.org", True),
        ("jörg@bücher.example", "jörg@bücher.example", True),
        ("postmaster", "postmaster", False),
    ],
)
def test_a_domain_is_encoded_where_the_local_part_allows(
    address: str, wire: str, smtputf8: bool
) -> None:
    assert on_the_wire(address) == wire
    assert needs_smtputf8(address) is smtputf8


def test_a_domain_that_cannot_be_encoded_is_an_error() -> None:
    with pytest.raises(AddressError, match="cannot be encoded"):
        on_the_wire("ann@bü..example")


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("ann@example.org", "example.org"),
        ("ann@bücher.example", "xn--bcher-kva.example"),
        ("ann@[127.0.0.1]", ""),
        ("postmaster", ""),
        ("", ""),
    ],
)
def test_the_domain_of_an_address(address: str, domain: str) -> None:
    assert domain_in_ascii(address) == domain
