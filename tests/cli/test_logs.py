"""The log: for people, and for programs."""
from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

import pytest

from postcommit._cli.logs import set_up
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._transaction.event import log_report
from postcommit.errors import RelayError
from postcommit.interfaces import Status


REPLY = Reply(550, "5.1.1", "No\nsuch user")
REJECTED = DeliveryReport.alike("1@x.org", ["a@x.org"], Status.REJECTED, REPLY)


def logged(capsys: Any, form: str, report: DeliveryReport) -> str:
    set_up("info", form)
    log_report(report)
    return str(capsys.readouterr().err)


def test_text_is_a_line_with_time_and_level(capsys: Any) -> None:
    line = logged(capsys, "text", REJECTED)
    time, level, rest = line.split(" ", 2)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert level == "ERROR"
    assert rest.startswith("postcommit.event: <1@x.org> to a@x.org: rejected: 550")
    assert line.count("\n") == 1


def test_json_has_what_is_known_of_a_message(capsys: Any) -> None:
    line = logged(capsys, "json", REJECTED)
    assert line.count("\n") == 1
    told = json.loads(line)
    assert datetime.fromisoformat(told.pop("time")).tzinfo is not None
    assert told.pop("message").startswith("<1@x.org> to a@x.org: rejected: 550")
    assert told == {
        "level": "error",
        "logger": "postcommit.event",
        "message_id": "1@x.org",
        "recipients": ["a@x.org"],
        "status": "rejected",
        "reply": {"code": 550, "enhanced": "5.1.1", "text": "No\nsuch user"},
    }


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Reply(421, "", "Bye"), 421),
        (RelayError("refused", Reply(535)), 535),
        (RelayError("away"), None),
    ],
)
def test_json_has_the_reply_of_a_relay_that_fails(
    failure: Any, code: int | None, capsys: Any
) -> None:
    report = DeliveryReport("1@x.org", ("a@x.org",), relay_failure=failure)
    told = json.loads(logged(capsys, "json", report))
    assert told["status"] == "not sent"
    assert told.get("reply", {}).get("code") == code


def test_json_has_a_traceback_in_its_line(capsys: Any) -> None:
    set_up("warning", "json")
    log = logging.getLogger("postcommit.somewhere")
    log.info("not shown")
    try:
        raise LookupError("gone")
    except LookupError:
        log.exception("it failed")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    told = json.loads(line)
    assert told["message"] == "it failed"
    assert "LookupError: gone" in told["traceback"]
    assert not {"message_id", "reply"} & told.keys()


def test_the_last_one_to_set_it_up_counts(capsys: Any) -> None:
    set_up("debug", "json")
    set_up("error", "text")
    logging.getLogger("postcommit").warning("quiet")
    logging.getLogger("postcommit").error("loud")
    assert capsys.readouterr().err.endswith("ERROR postcommit: loud\n")
