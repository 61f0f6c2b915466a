"""Reports, and the table from replies and exceptions to outcomes."""
from __future__ import annotations

import smtplib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit.errors import DeliveryError
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import Status
from postcommit.report import DeliveryReport
from postcommit.report import Outcome
from postcommit.report import Reply
from postcommit.report import Stage
from postcommit.report import blamed
from postcommit.report import from_exception
from postcommit.report import from_result
from postcommit.report import given_up
from postcommit.report import judge


ANN, BOB, CAROL = "ann@x.org", "bob@x.org", "carol@x.org"
BOTH = (ANN, BOB)

UMLAUT, ENCODED = "ann@bücher.example", "ann@xn--bcher-kva.example"

LATER = Reply(450, "4.2.0", "Greylisted")
NEVER = Reply(550, "5.1.1", "No such user")


def statuses(report: IDeliveryReport) -> dict[str, Status]:
    return {outcome.recipient: outcome.status for outcome in report.outcomes}


# Replies


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (Reply(), ""),
        (Reply(250), "250"),
        (LATER, "450 4.2.0 Greylisted"),
        (Reply(0, "4.4.2", "Connection lost"), "4.4.2 Connection lost"),
        (Reply(550, "", "two\nlines\r\n\tand more"), "550 two lines and more"),
        (Reply(550, "", "a\x1b[2Jb\0c\x9bd\u202ee\ud800"), "550 a�[2Jb�c�d�e�"),
        (Reply(550, "", "a\u2028b\x85c"), "550 a b c"),
        (Reply(550, "", "\x1b" * 70_000), f"550 {'�' * 1996}..."),
        (Reply(550, "", "x " * 70_000), f"550 {'x ' * 998}..."),
    ],
)
def test_a_reply_is_one_line(reply: Reply, line: str) -> None:
    assert str(reply) == line


@given(st.text(st.characters()))
def test_no_text_of_a_relay_disturbs_the_log(text: str) -> None:
    line = str(Reply(550, "5.1.1", text))
    assert line.isprintable()
    assert line.encode()
    assert line.startswith("550 5.1.1")


@pytest.mark.parametrize(
    ("stage", "code", "status"),
    [
        (Stage.SESSION, 250, Status.SENT),
        (Stage.SESSION, 450, None),
        (Stage.SESSION, 554, None),
        (Stage.MAIL, 250, Status.SENT),
        (Stage.MAIL, 451, Status.DEFERRED),
        (Stage.MAIL, 552, Status.REJECTED),
        (Stage.RCPT, 251, Status.SENT),
        (Stage.RCPT, 450, Status.DEFERRED),
        (Stage.RCPT, 550, Status.REJECTED),
        (Stage.RCPT, 552, Status.DEFERRED),
        (Stage.DATA, 354, Status.DEFERRED),
        (Stage.DATA, 554, Status.REJECTED),
        (Stage.END, 250, Status.SENT),
        (Stage.END, 452, Status.DEFERRED),
        (Stage.END, 552, Status.REJECTED),
        (Stage.END, 199, Status.DEFERRED),
        (Stage.END, 600, Status.DEFERRED),
    ],
)
def test_the_table_from_replies_to_outcomes(
    stage: Stage, code: int, status: Status | None
) -> None:
    assert judge(stage, code) is status


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("code", [421, 530, 534, 535, 538])
def test_some_replies_are_the_relays_trouble_at_each_stage(
    stage: Stage, code: int
) -> None:
    assert judge(stage, code) is None


# Reports


def mixed() -> DeliveryReport:
    return DeliveryReport(
        "1@x.org",
        (ANN, BOB, CAROL, "dave@x.org"),
        (
            Outcome(ANN, Status.SENT, Reply(250)),
            Outcome(BOB, Status.DEFERRED, LATER),
            Outcome(CAROL, Status.REJECTED, NEVER),
            Outcome("dave@x.org", Status.UNCERTAIN, Reply(0, "4.4.2", "Lost")),
        ),
    )


def test_a_report_sorts_its_outcomes() -> None:
    report = mixed()
    sorted_ = (report.sent, report.deferred, report.rejected, report.uncertain)
    assert tuple(outcome for (outcome,) in sorted_) == report.outcomes


def test_a_report_without_failures_does_not_raise() -> None:
    DeliveryReport.alike("1@x.org", BOTH, Status.SENT, Reply(250)).raise_for_failure()


def test_a_report_with_failures_raises_and_names_them() -> None:
    with pytest.raises(DeliveryError, match=r"bob@x\.org: deferred, 450") as caught:
        mixed().raise_for_failure()
    assert caught.value.report == mixed()
    assert isinstance(caught.value, OSError)
    assert ANN not in str(caught.value)


def test_a_relay_failure_raises() -> None:
    report = DeliveryReport("1@x.org", BOTH, relay_failure=RelayError("no connection"))
    with pytest.raises(DeliveryError, match="the relay failed: no connection"):
        report.raise_for_failure()
    assert report.outcomes == report.sent == ()


def test_what_is_given_up_keeps_its_last_reply_and_uncertain_stays_so() -> None:
    report = given_up(mixed())
    for before, after in zip(mixed().outcomes, report.outcomes, strict=True):
        is_deferred = before.status is Status.DEFERRED
        assert after.status is (Status.REJECTED if is_deferred else before.status)
        assert after.given_up is (before.status is Status.UNCERTAIN)
    assert report.uncertain
    assert [o.reply for o in report.outcomes] == [o.reply for o in mixed().outcomes]


# Results and exceptions of other mailers


@pytest.mark.parametrize("result", [None, {}, "queued as 1", {"id": "1", 2: "sent"}])
def test_who_does_not_raise_has_sent(result: object) -> None:
    report = from_result(result, "1@x.org", BOTH)
    assert set(statuses(report).values()) == {Status.SENT}


def test_a_report_is_taken_as_it_is() -> None:
    assert from_result(report := mixed(), "1@x.org", BOTH) is report


def test_a_mapping_has_the_refused_recipients() -> None:
    report = from_result({BOB: (550, b"N\xf6 such user")}, "1@x.org", BOTH)
    assert statuses(report) == {ANN: Status.SENT, BOB: Status.REJECTED}
    assert report.rejected[0].reply.text == "N\ufffd such user"


def test_a_refused_recipient_is_found_by_the_address_that_smtplib_takes() -> None:
    report = from_result({ENCODED: (550, b"No")}, "1@x.org", (UMLAUT, BOB))
    assert statuses(report) == {UMLAUT: Status.REJECTED, BOB: Status.SENT}
    assert str(report.rejected[0].reply) == "550 No"
    error = smtplib.SMTPRecipientsRefused({ENCODED: (550, b"No"), BOB: (450, b"Later")})
    report = from_exception(error, "1@x.org", (UMLAUT, BOB))
    assert statuses(report) == {UMLAUT: Status.REJECTED, BOB: Status.DEFERRED}
    error = smtplib.SMTPRecipientsRefused({ENCODED: (421, b"Going down")})
    report = from_exception(error, "1@x.org", (UMLAUT,))
    assert str(report.relay_failure) == "421 Going down"


def test_when_somebody_is_refused_nobody_knows_who_who_was_sent_is_uncertain() -> None:
    refused = {"ann": (1, 2), "Ann <ann@x.org>": (550, b"No"), CAROL: (450, b"Later")}
    report = from_result(refused, "1@x.org", (ANN, BOB, CAROL))
    assert statuses(report) == {
        ANN: Status.UNCERTAIN,
        BOB: Status.UNCERTAIN,
        CAROL: Status.DEFERRED,
    }
    assert {str(outcome.reply) for outcome in report.uncertain} == {
        "4.3.0 Refused was who is no recipient: Ann <ann@x.org>: 550 No"
    }
    assert not any(outcome.reply.code for outcome in report.uncertain)


@pytest.mark.parametrize("code", [421, 530, 535])
def test_who_was_sent_is_not_sent_again_for_what_is_said_of_another(code: int) -> None:
    report = from_result({BOB: (code, "Not now")}, "1@x.org", BOTH)
    assert report.relay_failure is None
    assert statuses(report) == {ANN: Status.SENT, BOB: Status.DEFERRED}


@pytest.mark.parametrize("odd", ["No", None, (550,), ("550", "No"), (1, 2, 3), {}])
def test_a_refusal_in_another_form_is_one_all_the_same(odd: object) -> None:
    for report in (
        from_result({BOB: odd}, "1@x.org", (BOB,)),
        from_exception(
            smtplib.SMTPRecipientsRefused({BOB: odd}),  # type: ignore[dict-item]
            "1@x.org",
            (BOB,),
        ),
    ):
        assert statuses(report) == {BOB: Status.DEFERRED}
        assert str(report.outcomes[0].reply)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (smtplib.SMTPSenderRefused(451, b"Busy", ANN), Status.DEFERRED),
        (smtplib.SMTPSenderRefused(550, b"No", ANN), Status.REJECTED),
        (smtplib.SMTPDataError(452, "Full"), Status.DEFERRED),
        (smtplib.SMTPDataError(554, "Spam"), Status.REJECTED),
        (smtplib.SMTPDataError(250, "What?"), Status.DEFERRED),
        (smtplib.SMTPDataError(450, None), Status.DEFERRED),  # type: ignore[arg-type]
        (smtplib.SMTPDataError("?", b""), Status.DEFERRED),  # type: ignore[arg-type]
        (smtplib.SMTPResponseException(552, "Full"), Status.REJECTED),
        (smtplib.SMTPServerDisconnected("Lost"), Status.UNCERTAIN),
        (smtplib.SMTPNotSupportedError("SMTPUTF8"), Status.REJECTED),
        (smtplib.SMTPException("Anything"), Status.DEFERRED),
        (smtplib.SMTPRecipientsRefused({}), Status.DEFERRED),
        (smtplib.SMTPRecipientsRefused("all"), Status.DEFERRED),  # type: ignore[arg-type]
        (ValueError("An address"), Status.REJECTED),
        (TypeError("A mistake"), Status.DEFERRED),
        (KeyError("A mistake"), Status.DEFERRED),
    ],
)
def test_an_exception_about_the_message(error: Exception, status: Status) -> None:
    report = from_exception(error, "1@x.org", BOTH)
    assert statuses(report) == {ANN: status, BOB: status}
    assert report.message_id == "1@x.org"
    assert report.relay_failure is None


def test_recipients_that_were_refused_have_their_own_replies() -> None:
    error = smtplib.SMTPRecipientsRefused({ANN: (450, b"Later"), BOB: (550, b"No")})
    report = from_exception(error, "1@x.org", BOTH)
    assert statuses(report) == {ANN: Status.DEFERRED, BOB: Status.REJECTED}


def test_who_is_not_mentioned_in_a_refusal_was_not_sent_either() -> None:
    """A mailer that rewrites addresses, and smtplib's when the relay hangs up."""
    error = smtplib.SMTPRecipientsRefused({"Ann <ann@x.org>": (550, b"No")})
    report = from_exception(error, "1@x.org", (ANN,))
    assert statuses(report) == {ANN: Status.DEFERRED}
    assert "550" in str(report.outcomes[0].reply)
    error = smtplib.SMTPRecipientsRefused({ANN: (250, b"Ok"), BOB: (550, b"No")})
    report = from_exception(error, "1@x.org", BOTH)
    assert statuses(report) == {ANN: Status.DEFERRED, BOB: Status.REJECTED}
    error = smtplib.SMTPRecipientsRefused({BOB: (421, b"Going down")})
    report = from_exception(error, "1@x.org", BOTH)
    assert str(report.relay_failure) == "421 Going down"
    assert report.outcomes == ()
    assert report.had_its_turn


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (Reply(421, "4.7.0", "Try again later"), "421 4.7.0 Try again later"),
        (RelayError("mute"), "4.4.2 The relay fails at this message: mute"),
    ],
)
def test_a_message_that_is_to_blame_is_deferred(
    failure: Reply | RelayError, said: str
) -> None:
    report = blamed(DeliveryReport("1@x.org", BOTH, (), failure, True))
    assert statuses(report) == dict.fromkeys(BOTH, Status.DEFERRED)
    assert {str(outcome.reply) for outcome in report.outcomes} == {said}
    assert report.message_id == "1@x.org"
    assert report.relay_failure is None


def test_a_mailer_may_raise_the_failure_of_another_ones_report() -> None:
    """One refused recipient does not pause the queue."""
    with pytest.raises(DeliveryError) as caught:
        mixed().raise_for_failure()
    assert from_exception(caught.value, "1@x.org", BOTH) == mixed()


@pytest.mark.parametrize(
    "error",
    [
        smtplib.SMTPAuthenticationError(535, b"Expired"),
        smtplib.SMTPConnectError(554, "No service"),
        smtplib.SMTPHeloError(550, "Who?"),
        smtplib.SMTPSenderRefused(530, b"Log in first", ANN),
        smtplib.SMTPDataError(421, "Going down"),
    ],
)
def test_a_reply_about_the_relay_is_its_failure(
    error: smtplib.SMTPResponseException,
) -> None:
    report = from_exception(error, "1@x.org", BOTH)
    assert report.outcomes == ()
    assert isinstance(report.relay_failure, Reply)
    assert report.relay_failure.code == error.smtp_code
    in_the_middle = (smtplib.SMTPSenderRefused, smtplib.SMTPDataError)
    assert report.had_its_turn is isinstance(error, in_the_middle)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("No"),
        TimeoutError("Late"),
        ssl.SSLError("Bad"),
        smtplib.SMTPNotSupportedError("STARTTLS extension not supported by server."),
        smtplib.SMTPException("No suitable authentication method found."),
    ],
)
def test_an_error_before_any_message_is_the_relays_failure(error: OSError) -> None:
    report = from_exception(error, "1@x.org", BOTH)
    assert report.outcomes == ()
    assert isinstance(report.relay_failure, RelayError)
    assert report.relay_failure.__cause__ is error
    assert type(error).__name__ in str(report.relay_failure)


def test_the_text_of_a_network_error_is_one_line() -> None:
    report = from_exception(OSError("a\nb\x1b"), "1@x.org", BOTH)
    assert str(report.relay_failure) == "OSError: a b�"


def test_a_relay_error_keeps_its_reply() -> None:
    error = RelayError("Away", Reply(421))
    assert from_exception(error, "1@x.org", BOTH).relay_failure is error


EVERY_ERROR = [
    smtplib.SMTPRecipientsRefused({ANN: (450, b"Later")}),
    smtplib.SMTPServerDisconnected("Lost"),
    smtplib.SMTPResponseException(550, "No"),
    smtplib.SMTPSenderRefused(550, b"No", ANN),
    smtplib.SMTPDataError(550, "No"),
    smtplib.SMTPConnectError(550, "No"),
    smtplib.SMTPHeloError(550, "No"),
    smtplib.SMTPAuthenticationError(535, "No"),
    smtplib.SMTPNotSupportedError("No"),
    smtplib.SMTPException("No"),
]


def test_no_exception_of_smtplib_says_that_anything_was_sent() -> None:
    known = {
        kind
        for kind in vars(smtplib).values()
        if isinstance(kind, type) and issubclass(kind, smtplib.SMTPException)
    }
    assert {type(error) for error in EVERY_ERROR} == known
    for error in EVERY_ERROR:
        report = from_exception(error, "1@x.org", BOTH)
        assert not report.sent
        assert bool(report.relay_failure) != bool(report.outcomes)


@given(
    st.lists(st.sampled_from([ANN, BOB, CAROL]), unique=True, min_size=1),
    st.dictionaries(
        st.sampled_from([ANN, BOB, CAROL]), st.tuples(st.integers(0, 999), st.text())
    ),
)
def test_each_recipient_is_accounted_for_once(
    recipients: list[str], refused: dict[str, tuple[int, str]]
) -> None:
    for report in (
        from_result(refused, "1@x.org", tuple(recipients)),
        from_exception(
            smtplib.SMTPRecipientsRefused(refused), "1@x.org", tuple(recipients)
        ),
    ):
        assert report.recipients == tuple(recipients)
        if report.relay_failure is None:
            assert [o.recipient for o in report.outcomes] == recipients
