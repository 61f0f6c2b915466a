"""Logging in, and keeping the password to oneself."""
from __future__ import annotations

import base64
import hashlib
import logging
import signal
import threading
import traceback

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP
from aiosmtpd.smtp import AuthResult

from postcommit._mail.report import Reply
from postcommit._smtp.credentials import Credentials
from postcommit._smtp.credentials import _scram_sha_256
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import told
from tests.support import logins as server_side
from tests.support.ports import free_port


USERS = {"me": "s3cr3t"}
ME = {"username": "me", "password": "s3cr3t"}


def send(mailer):
    return told(mailer.send(SENDER, B, MESSAGE))


def logins(relay):
    return [command for command in relay.commands if command.startswith("AUTH")]


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("password", ["s3cr3t", "\u00fc \u20ac"])
def test_passwords(start, connect, mechanism, password):
    relay = start(users={"me": password}, mechanisms=[mechanism])
    mailer = connect(relay, username="me", password=password)
    assert send(mailer) == send(mailer) == ["sent"]
    assert [m.user for m in relay.messages] == ["me", "me"]
    assert len(logins(relay)) == 1


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"])
def test_a_user_name_with_signs_that_mean_something(start, connect, mechanism):
    relay = start(users={"a=b,c =2C": "p,=w"}, mechanisms=[mechanism])
    assert send(connect(relay, username="a=b,c =2C", password="p,=w")) == ["sent"]
    assert relay.messages[0].user == "a=b,c =2C"


def test_a_long_password_waits_for_its_turn(start, connect):
    relay = start(users={"me": "x" * 400}, mechanisms=["PLAIN"])
    assert send(connect(relay, username="me", password="x" * 400)) == ["sent"]
    assert logins(relay) == ["AUTH PLAIN"]


@pytest.mark.parametrize(
    "offer",
    ["AUTH=LOGIN", "auth=login", "Auth Login", "auth  xyz login", "AUTH=\tLOGIN"],
)
def test_the_old_form_of_the_offer_in_any_case(start, connect, offer):
    relay = start(users=USERS, mechanisms=["LOGIN"])
    relay.reply("EHLO", ["250-relay.example", f"250 {offer}"])
    assert send(connect(relay, **ME)) == ["sent"]
    assert logins(relay) == ["AUTH LOGIN"]


ALL = ["LOGIN", "PLAIN", "CRAM-MD5", "SCRAM-SHA-256"]


@pytest.mark.parametrize(
    ("offered", "in_clear", "under_tls"),
    [
        (ALL, "SCRAM-SHA-256", "SCRAM-SHA-256"),
        (ALL[:3], "CRAM-MD5", "PLAIN"),
        (ALL[:2], "PLAIN", "PLAIN"),
        (["LOGIN", "CRAM-MD5"], "CRAM-MD5", "LOGIN"),
    ],
)
def test_the_best_one_offered(start, connect, authority, offered, in_clear, under_tls):
    for tls, best in ((None, in_clear), (authority.server(), under_tls)):
        relay = start(users=USERS, mechanisms=offered, tls=tls)
        assert send(connect(relay, **ME)) == ["sent"]
        [login] = logins(relay)
        assert login.split()[1] == best


@pytest.mark.parametrize("mechanism", ALL)
def test_the_one_that_is_chosen(start, connect, mechanism):
    relay = start(users=USERS, mechanisms=ALL)
    assert send(connect(relay, auth=mechanism.lower(), **ME)) == ["sent"]
    [login] = logins(relay)
    assert login.split()[1] == mechanism
    relay = start(users=USERS, mechanisms=["X-OTHER", *set(ALL) - {mechanism}])
    report = connect(relay, auth=mechanism.lower(), **ME).send(SENDER, B, MESSAGE)
    told = f"; {mechanism} is needed to log in, because of auth='{mechanism.lower()}'"
    assert told in str(report.relay_failure)
    assert logins(relay) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"auth": "xoauth2", **ME}, "auth='xoauth2': needs a token"),
        (
            {"auth": "plain", "username": "me", "token": lambda: "t"},
            "auth='plain': needs a password",
        ),
        ({"auth": "plain"}, "auth='plain': has no effect without a username"),
        ({"auth": "PLAIN", **ME}, "auth='PLAIN': must be one of 'plain'"),
        (
            {"token": lambda: "t", **ME},
            "password='***': has no effect with a token",
        ),
    ],
)
def test_a_choice_that_does_not_fit(options, told):
    with pytest.raises(OptionError) as caught:
        SMTPMailer(**options)
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_under_tls(start, connect, authority, tls):
    relay = start(tls=authority.server(), implicit_tls=tls == "implicit", users=USERS)
    mailer = connect(relay, tls=tls, cafile=authority.cafile, **ME)
    assert send(mailer) == ["sent"]
    assert [(m.tls, m.user) for m in relay.messages] == [(True, "me")]


def test_refused(start, connect):
    relay = start(users=USERS, mechanisms=["PLAIN", "LOGIN"])
    mailer = connect(relay, username="me", password="wrong")
    report = mailer.send(SENDER, B, MESSAGE)
    assert report.relay_failure.reply.code == 535
    assert relay.messages == []
    assert len(logins(relay)) == 1  # LOGIN would say the same


def test_cram_md5_refused_where_plain_is_not(start, connect):
    """Some offer what they cannot do, having only hashes of the passwords."""
    relay = start(users=USERS)
    relay.reply("AUTH", "535 5.7.8 Hm", times=1)
    assert send(connect(relay, **ME)) == ["sent"]
    assert [login.split()[1] for login in logins(relay)] == ["CRAM-MD5", "PLAIN"]


def test_a_mechanism_refused(start, connect):
    relay = start(users=USERS, mechanisms=["PLAIN", "LOGIN"])
    relay.reply("AUTH", "504 5.5.4 Not that one", times=1)
    assert send(connect(relay, **ME)) == ["sent"]


def test_scram_refused_where_plain_is_not(start, connect):
    relay = start(users=USERS, mechanisms=ALL)
    relay.reply("AUTH", "535 5.7.8 Hm", times=1)
    assert send(connect(relay, auth=None, **ME)) == ["sent"]
    assert [one.split()[1] for one in logins(relay)] == ["SCRAM-SHA-256", "CRAM-MD5"]


@pytest.mark.parametrize("reply", ["421 4.3.2 Bye", "454 4.7.0 Later"])
def test_refused_for_now(start, connect, reply):
    relay = start(users=USERS, mechanisms=["PLAIN"])
    relay.reply("AUTH", reply)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    told = f"127.0.0.1:{relay.port}: login refused: {reply}"
    assert str(report.relay_failure) == told


def test_hangs_up(start, connect):
    relay = start(users=USERS)
    relay.drop("AUTH")
    assert send(connect(relay, **ME)) == "relay"


@pytest.mark.parametrize("offer", [["GSSAPI"], ["CRAM-SHA1", "PLAINER"]])
def test_no_mechanism_in_common(start, connect, offer):
    relay = start(users=USERS, mechanisms=offer)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert f"AUTH {' '.join(offer)}; SCRAM-SHA-256 or" in str(report.relay_failure)


def test_not_offered_at_all(relay, connect):
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert "offers no AUTH; " in str(report.relay_failure)


def test_asks_for_ever(start, connect):
    # it takes the answers for commands
    relay = start(provoked=True, users=USERS, mechanisms=["LOGIN"])
    relay.reply("AUTH", b"334 x\r\n" * 9)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert told(report) == "relay"


# Never in clear


@pytest.mark.parametrize(
    ("tls", "reason"),
    [("auto", "it offers no STARTTLS"), ("none", "tls='none' allows no TLS")],
)
def test_never_in_clear(start, connect, outside, tls, reason):
    relay = start(users=USERS, host=outside)
    report = connect(relay, hostname=outside, tls=tls, **ME).send(SENDER, B, MESSAGE)
    assert reason in str(report.relay_failure)
    assert "not sent in clear; set tls to" in str(report.relay_failure)
    assert logins(relay) == []


def test_not_to_somebody_unknown(start, connect, authority, outside):
    """`auto` verifies the certificate where a login would be sent."""
    relay = start(tls=authority.server(), users=USERS, host=outside)
    report = connect(relay, hostname=outside, **ME).send(SENDER, B, MESSAGE)
    assert "cannot be trusted" in str(report.relay_failure)
    assert logins(relay) == []


def test_to_somebody_known(start, connect, authority, outside):
    relay = start(tls=authority.server(outside), users=USERS, host=outside)
    mailer = connect(relay, hostname=outside, cafile=authority.cafile, **ME)
    assert send(mailer) == ["sent"]


# Tokens


class Tokens:
    """Gives out one token after the other."""

    def __init__(self, *tokens):
        self.tokens = list(tokens)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        token = self.tokens.pop(0)
        if isinstance(token, Exception):
            raise token
        return token


BEARERS = pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])


@BEARERS
@pytest.mark.parametrize("length", [5, 2000])
def test_tokens(start, connect, mechanism, length):
    relay = start(tokens=["t" * length], mechanisms=[mechanism])
    mailer = connect(relay, username="me", token=Tokens("t" * length))
    assert send(mailer) == ["sent"]
    assert relay.messages[0].user == "me"
    mailer.close()
    assert send(mailer) == ["sent"]  # with the same token
    assert mailer.token.calls == 1


@BEARERS
def test_a_fresh_token_for_one_that_is_refused(start, connect, mechanism):
    relay = start(tokens=["old"], mechanisms=[mechanism])
    mailer = connect(relay, username="me", token=Tokens("old", "new"))
    assert send(mailer) == ["sent"]
    mailer.close()
    relay.tokens = {"new"}
    assert send(mailer) == ["sent"]
    assert mailer.token.calls == 2


@BEARERS
def test_the_fresh_token_is_refused_too(start, connect, mechanism):
    relay = start(tokens=["good"], mechanisms=[mechanism])
    mailer = connect(relay, username="me", token=Tokens("bad", "worse", "good"))
    report = mailer.send(SENDER, B, MESSAGE)
    assert report.relay_failure.reply.code == 535
    assert send(mailer) == ["sent"]
    assert mailer.token.calls == 3
    # The token that was refused last is not tried again.
    assert sum(command.startswith("AUTH") for command in relay.commands) == 3


@BEARERS
def test_the_relay_hangs_up_on_the_old_token(start, connect, mechanism):
    relay = start(tokens=["good"], mechanisms=[mechanism])
    relay.drop("AUTH", times=1)
    mailer = connect(relay, username="me", token=Tokens("bad", "good"))
    assert send(mailer) == "relay"
    assert send(mailer) == ["sent"]


@BEARERS
@pytest.mark.parametrize("answer", ["closed", "silence", "421 4.7.0 Bye", "garbage"])
def test_a_token_that_was_good_and_gets_no_answer(start, connect, mechanism, answer):
    relay = start(tokens=["old", "new"], mechanisms=[mechanism])
    mailer = connect(relay, timeout=0.5, username="me", token=Tokens("old", "new"))
    assert send(mailer) == ["sent"]
    mailer.close()
    relay.tokens = {"new"}
    if answer == "closed":
        relay.drop("AUTH", times=1)
    elif answer == "silence":
        relay.hold("AUTH")
    else:
        relay.reply("AUTH", answer, times=1)
    assert send(mailer) == "relay"
    assert send(mailer) == ["sent"]
    assert mailer.token.calls == 2


def test_connections_at_the_same_time_share_a_token():
    """A relay that refuses a token does not take a newer one from the others."""
    credentials = Credentials("me", token=Tokens("1", "2", "3"))
    def accept(line):
        return Reply(235)

    def refuse(line):
        # Meanwhile, another thread has logged in with a fresh token.
        credentials._kept[:] = ["newer"]
        return Reply(421)

    assert credentials.log_in(accept, ["XOAUTH2"]).code == 235
    assert credentials.log_in(refuse, ["XOAUTH2"]).code == 421
    assert credentials.log_in(accept, ["XOAUTH2"]).code == 235
    assert credentials.token.calls == 1


def test_no_token_to_be_had(start, connect):
    relay = start(tokens=["good"], mechanisms=["XOAUTH2"])
    tokens = Tokens(ConnectionError("no network"), "good")
    mailer = connect(relay, username="me", token=tokens)
    report = mailer.send(SENDER, B, MESSAGE)
    assert "no network" in str(report.relay_failure)
    assert send(mailer) == ["sent"]


def test_any_error_in_the_token_function_is_a_failure_of_the_relay(start, connect):
    relay = start(tokens=["good"], mechanisms=["XOAUTH2"])
    tokens = Tokens(ValueError("secret"), None, b"secret", "", 7, "good")
    mailer = connect(relay, username="me", token=tokens)
    for text in (
        "the token function raised ValueError",
        "the token function returned NoneType, not a token",
        "the token function returned bytes, not a token",
        "the token function returned an empty str, not a token",
        "the token function returned int, not a token",
    ):
        failure = mailer.send(SENDER, B, MESSAGE).relay_failure
        assert type(failure) is RelayError
        assert str(failure).endswith(text)
        shown = "".join(traceback.format_exception(failure))
        assert "secret" not in shown
    relay.wait_until(lambda: not relay.open)
    assert send(mailer) == ["sent"]


# An initial response that the relay does not take


@pytest.mark.parametrize("empty", ["334 ", "334", "334 ?"])
@pytest.mark.parametrize(
    "mechanism", ["PLAIN", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2"]
)
def test_asked_again_for_the_initial_response(start, connect, mechanism, empty):
    relay = start(users=USERS, tokens=["t"], mechanisms=[mechanism])

    def ask(dialogue, initial):
        dialogue.say(f"{empty}\r\n".encode())
        assert dialogue.read_line(limit=12288) == initial
        return server_side.usual(dialogue, mechanism, initial)

    relay.exchange = ask
    is_token = mechanism in ("OAUTHBEARER", "XOAUTH2")
    secret = {"token": Tokens("t")} if is_token else {"password": "s3cr3t"}
    assert send(connect(relay, username="me", **secret)) == ["sent"]
    assert relay.messages[0].user == "me"


def test_asked_twice_for_the_initial_response(start, connect):
    """It is sent once more, and then the relay is out of step."""
    relay = start(users=USERS, mechanisms=["PLAIN"])
    said = []

    def ask(dialogue, initial):
        for _ in range(2):
            dialogue.say(b"334 \r\n")
            said.append(dialogue.read_line(limit=12288))

    relay.exchange = ask
    assert send(connect(relay, **ME)) == "relay"
    assert [base64.b64decode(said[0]), said[1]] == [b"\0me\0s3cr3t", "*"]


# SCRAM


def test_the_example_of_rfc_7677():
    exchange = _scram_sha_256("user", "pencil", "rOprNGfwEbeRWgbNEkqO")
    assert next(exchange) == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    nonce = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    first = nonce + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    proof = b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert exchange.send(first) == b"c=biws," + nonce + b",p=" + proof
    last = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert exchange.send(last) == b""
    with pytest.raises(StopIteration):
        exchange.send(None)


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("I\u00adX", "IX"),  # the examples of RFC 4013
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
    ],
)
def test_a_password_is_prepared(start, connect, text, prepared):
    relay = start(users={prepared: prepared}, mechanisms=["SCRAM-SHA-256"])
    assert send(connect(relay, username=text, password=text)) == ["sent"]
    assert relay.messages[0].user == prepared


def scripted(relay, *challenges, user="me"):
    """Have `relay` answer to the first AUTH by `challenges`, then by 235 for a `user`.

    Return the list of what the client says.
    """
    said = []

    def act(dialogue, initial):
        relay.exchange = None
        for challenge in challenges:
            text = base64.b64encode(challenge % own_half(relay))
            dialogue.say(b"334 " + text + b"\r\n")
            said.append(base64.b64decode(dialogue.read_line(limit=12288)))
        return user

    relay.exchange = act
    return said


def own_half(relay):
    """Return the client's part of the nonce."""
    [login] = logins(relay)
    return {b"half": base64.b64decode(login.split()[2]).rpartition(b"r=")[2]}


FIRST = b"r=%(half)bx,s=c2FsdA==,i=4096"


@pytest.mark.parametrize("claim", [b"v=AAAA", b"", b"v=", b"w=AAAA"])
def test_a_relay_that_does_not_know_the_password(start, connect, claim):
    relay = start(users=USERS, mechanisms=ALL, provoked=True)
    scripted(relay, FIRST, claim)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert "does not prove that it knows the password" in str(report.relay_failure)
    # Nor is the password sent by another mechanism.
    assert [one.split()[1] for one in logins(relay)] == ["SCRAM-SHA-256"]
    assert relay.messages == []


@pytest.mark.parametrize("challenges", [0, 1])
def test_a_relay_that_accepts_before_it_has_proved_anything(start, connect, challenges):
    relay = start(users=USERS, mechanisms=ALL, provoked=True)
    scripted(relay, *[FIRST][:challenges])
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert "SCRAM-SHA-256: the relay does not" in str(report.relay_failure)
    assert relay.messages == []


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (b"r=%(half)b,s=c2FsdA==,i=4096", "RFC 5802"),  # nothing of its own
        (b"r=other%(half)b,s=c2FsdA==,i=4096", "RFC 5802"),
        (b"m=x,r=%(half)bx,s=c2FsdA==,i=4096", "RFC 5802"),
        (b"r=%(half)bx,i=4096", "RFC 5802"),
        (b"r=%(half)bx,s=?,i=4096", "RFC 5802"),
        (b"r=%(half)bx,s=c2FsdA==,i=many", "RFC 5802"),
        (b"r=%(half)bx,s=c2FsdA==,i=0", "wants 0 iterations"),
        (b"r=%(half)bx,s=c2FsdA==,i=2000000000", "wants 2000000000 iterations"),
        (b"\xff%(half)b", "RFC 5802"),
    ],
)
def test_an_odd_answer_to_scram(start, connect, first, told):
    relay = start(users=USERS, mechanisms=ALL, provoked=True)
    scripted(relay, first)
    report = connect(relay, **ME).send(SENDER, B, MESSAGE)
    assert told in str(report.relay_failure)
    assert "auth can choose another mechanism" in str(report.relay_failure)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("user", ["me", None])
def test_an_error_within_scram(start, connect, steps, user):
    relay = start(users=USERS, mechanisms=["SCRAM-SHA-256", "LOGIN"])
    said = scripted(relay, *[FIRST, b"e=invalid-proof"][-steps:], user=user)
    mailer = connect(relay, **ME)
    if user is None:
        assert send(mailer) == ["sent"]  # by LOGIN
    else:
        report = mailer.send(SENDER, B, MESSAGE)
        assert "accepted a login that it had refused" in str(report.relay_failure)
    assert said[-1] == b""


# Keeping it secret


@pytest.mark.parametrize(
    "options",
    [
        {"username": "me"},
        {"token": lambda: "t"},
        {"username": "", "token": lambda: "t"},
        {"username": "me", "token": "t"},
    ],
)
def test_incomplete_credentials(options):
    with pytest.raises(OptionError):
        SMTPMailer(**options)


@pytest.mark.parametrize("username", [None, ""])
def test_a_password_without_a_name_is_refused(username):
    with pytest.raises(OptionError, match=r"password='.*has no effect without a user"):
        SMTPMailer(username=username, password="s3cr3t")
    SMTPMailer(username=username, password="")


@pytest.mark.parametrize("trouble", ["refused", "hangs up", "clear", "garbage"])
def test_told_to_nobody(start, connect, caplog, outside, trouble):
    host = outside if trouble == "clear" else "127.0.0.1"
    relay = start(users=USERS, mechanisms=["PLAIN"], host=host)
    mailer = connect(relay, hostname=host, username="me", password="Pa55word")
    if trouble == "hangs up":
        relay.drop("AUTH")
    elif trouble == "garbage":
        relay.reply("AUTH", b"???\r\n")
    with caplog.at_level(logging.DEBUG):
        report = mailer.send(SENDER, B, MESSAGE)
    text = caplog.text + repr(mailer) + repr(mailer.relay) + repr(report)
    if isinstance(report.relay_failure, RelayError):
        chain = traceback.TracebackException.from_exception(
            report.relay_failure, capture_locals=True
        )
        text += "".join(chain.format())
    assert "relay failed" in text
    assert "Pa55word" not in text
    assert base64.b64encode(b"\0me\0Pa55word").decode() not in text


def all_that_shows(error):
    """Return `error` as a program shows it that shows local variables, too."""
    chain = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(chain.format())


SECRET = "Pa55word-and-more"


def secret_for(mechanism):
    """Return the option with the secret. No local variable of a test has it."""
    is_token = mechanism in ("OAUTHBEARER", "XOAUTH2")
    return {"token": lambda: SECRET} if is_token else {"password": SECRET}


def assert_kept(told):
    """Assert that nothing in `told` leads to the secret."""
    encoded = base64.b64encode(SECRET.encode()).decode().rstrip("=")[:-1]
    salted = hashlib.pbkdf2_hmac("sha256", SECRET.encode(), b"salt", 4096)
    for form in (SECRET, encoded, repr(salted)[2:-1], salted.hex()):
        assert form not in told
    assert base64.b64encode(f"\0me\0{SECRET}".encode()).decode() not in told


@pytest.mark.parametrize("mechanism", [*ALL, "OAUTHBEARER", "XOAUTH2"])
def test_no_local_variable_has_it_after_a_loss(start, connect, caplog, mechanism):
    relay = start(tokens=["x"], users=USERS, mechanisms=[mechanism])
    relay.drop("AUTH")
    mailer = connect(relay, username="me", **secret_for(mechanism))
    with caplog.at_level(logging.DEBUG):
        error = mailer.send(SENDER, B, MESSAGE).relay_failure
    assert "hung up" in all_that_shows(error)
    assert_kept(all_that_shows(error) + caplog.text + repr(mailer.relay))


@pytest.mark.parametrize("mechanism", [*ALL, "OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_no_local_variable_has_it_after_an_interrupt(
    start, connect, kind, mechanism
):
    came = threading.Event()

    def handler(number, frame):
        if not came.is_set():
            came.set()
            raise kind

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        _interrupt_a_login(start, connect, kind, mechanism, came)
    finally:
        signal.signal(signal.SIGUSR1, before)


def _interrupt_a_login(start, connect, kind, mechanism, came):
    relay = start(tokens=["x"], users=USERS, mechanisms=[mechanism])
    hold = relay.hold("AUTH")
    mailer = connect(relay, username="me", **secret_for(mechanism))
    main = threading.main_thread()

    def interrupt():
        assert hold.reached.wait(60)
        # A signal right before the system call does not interrupt it.
        while not came.wait(0.01):
            signal.pthread_kill(main.ident, signal.SIGUSR1)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(kind) as caught:
        mailer.send(SENDER, B, MESSAGE)
    hold.release()
    interrupter.join()
    ours = caught.value.__traceback__.tb_next  # without the frame of this test
    assert_kept(all_that_shows(caught.value.with_traceback(ours)))


def test_no_local_variable_has_it_after_a_lie(start, connect):
    relay = start(users=USERS, mechanisms=["SCRAM-SHA-256"], provoked=True)
    scripted(relay, b"r=%(half)bx,s=c2FsdA==,i=4096", b"v=AAAA")
    mailer = connect(relay, username="me", **secret_for("SCRAM-SHA-256"))
    error = mailer.send(SENDER, B, MESSAGE).relay_failure
    assert "does not prove" in all_that_shows(error)
    assert_kept(all_that_shows(error))


@pytest.mark.parametrize("form", [SECRET, base64.b64encode(SECRET.encode()).decode()])
@pytest.mark.parametrize("mechanism", ["PLAIN", "XOAUTH2"])
def test_a_relay_that_repeats_it_is_not_quoted(start, connect, caplog, mechanism, form):
    relay = start(tokens=["x"], users=USERS, mechanisms=[mechanism])
    relay.reply("AUTH", f"535 5.7.8 Wrong: {form} is not for me")
    mailer = connect(relay, username="me", **secret_for(mechanism))
    with caplog.at_level(logging.DEBUG):
        failure = mailer.send(SENDER, B, MESSAGE).relay_failure
    assert failure.reply.text == "Wrong: *** is not for me"
    assert_kept(str(failure) + caplog.text)


def repeating(relay, before, after, part=slice(None)):
    """Have `relay` refuse each login with the last line of it between two texts."""

    def act(dialogue, initial):
        lines = [initial]
        for challenge in (b"VXNlcg==", b"UGFzcw=="):
            if initial:
                break
            dialogue.say(b"334 " + challenge + b"\r\n")
            lines.append(dialogue.read_line(limit=12288))
        relay.reply("AUTH", before + lines[-1].encode()[part] + after, times=1)

    relay.exchange = act


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"])
def test_a_relay_that_repeats_the_command_is_not_quoted(
    start, connect, caplog, mechanism
):
    """The secret is in the middle of the text that is encoded."""
    relay = start(tokens=["x"], users=USERS, mechanisms=[mechanism])
    repeating(relay, b"500 5.5.1 What is ", b"?\r\n")
    mailer = connect(relay, username="me", **secret_for(mechanism))
    with caplog.at_level(logging.DEBUG):
        failure = mailer.send(SENDER, B, MESSAGE).relay_failure
    assert failure.reply.text == "What is ***?"
    assert_kept(str(failure) + caplog.text)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("cut", [slice(0, 20), slice(12, None), slice(3, -3)])
def test_a_relay_that_repeats_a_part_of_the_command_is_not_quoted(
    start, connect, caplog, mechanism, cut
):
    relay = start(tokens=["x"], users=USERS, mechanisms=[mechanism])
    repeating(relay, b"500 5.5.1 What is ", b"?\r\n", cut)
    mailer = connect(relay, username="me", **secret_for(mechanism))
    with caplog.at_level(logging.DEBUG):
        failure = mailer.send(SENDER, B, MESSAGE).relay_failure
    assert failure.reply.text == "What is ***?"


def test_a_reply_that_is_not_smtp_is_not_quoted_either(start, connect, caplog):
    relay = start(users=USERS, mechanisms=["PLAIN"], provoked=True)
    repeating(relay, b"? AUTH PLAIN ", b"\r\n")
    mailer = connect(relay, username="me", **secret_for("PLAIN"))
    with caplog.at_level(logging.DEBUG):
        failure = mailer.send(SENDER, B, MESSAGE).relay_failure
    assert "the reply to AUTH PLAIN is not SMTP" in str(failure)
    assert_kept(str(failure) + caplog.text)


def test_a_short_password_is_not_looked_for_in_words(start, connect):
    relay = start(users=USERS, mechanisms=["PLAIN"])
    relay.reply("AUTH", "535 5.7.8 Wrong")
    mailer = connect(relay, username="me", password="ron")
    assert mailer.send(SENDER, B, MESSAGE).relay_failure.reply.text == "Wrong"


# aiosmtpd


@pytest.mark.parametrize("password", ["s3cr3t", "wrong"])
def test_aiosmtpd(connect, authority, password):
    def authenticate(server, session, envelope, mechanism, data):
        good = (data.login, data.password) == (b"me", b"s3cr3t")
        return AuthResult(success=good, handled=False)

    gone = threading.Event()

    class Server(SMTP):
        def connection_lost(self, error):
            super().connection_lost(error)
            gone.set()

    class Relay(Controller):
        def factory(self):
            return Server(self.handler, **self.SMTP_kwargs)

    controller = Relay(
        Sink(),
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=authority.server(),
        require_starttls=True,
        authenticator=authenticate,
        auth_required=True,
    )
    controller.start()
    try:
        mailer = connect(
            controller,
            tls="starttls",
            cafile=authority.cafile,
            username="me",
            password=password,
        )
        expected = ["sent"] if password == "s3cr3t" else "relay"
        assert send(mailer) == expected
        mailer.close()
        assert gone.wait(60)
    finally:
        controller.stop()
