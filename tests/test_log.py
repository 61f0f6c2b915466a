"""A log that cannot fail."""
from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from postcommit._log import Log


NAME = "postcommit.test_log"
log = Log(NAME)


def broken(record: logging.LogRecord) -> bool:
    raise ValueError("a filter that does not work")


@pytest.fixture
def raising() -> Iterator[None]:
    logger = logging.getLogger(NAME)
    logger.addFilter(broken)
    yield
    logger.removeFilter(broken)


def test_a_record_is_as_that_of_a_plain_logger(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("%s of %s", 1, 2, extra={"status": "sent"})
    log.log(logging.WARNING, "plain")
    first, second = caplog.records
    assert first.getMessage() == "1 of 2"
    assert first.levelno == logging.ERROR
    assert first.exc_info is not None
    assert first.exc_info[0] is KeyError
    assert first.__dict__["status"] == "sent"
    for record in (first, second):
        assert record.name == NAME
        assert record.funcName == "test_a_record_is_as_that_of_a_plain_logger"
        assert record.filename == "test_log.py"


@pytest.mark.usefixtures("raising")
def test_what_a_filter_raises_is_told_on_the_error_stream_and_not_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.error("<%s> sent", "1@x.org")
    told = capsys.readouterr().err
    assert "ValueError: a filter that does not work" in told
    assert "'<%s> sent'" in told
    assert "1@x.org" in told


@pytest.mark.usefixtures("raising")
def test_nobody_is_told_where_logging_is_to_be_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.error("sent")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("raising")
def test_what_is_not_to_be_logged_does_not_get_as_far_as_a_filter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.debug("sent")
    assert capsys.readouterr().err == ""


def test_an_interrupt_is_no_failure_of_the_log() -> None:
    def interrupted(record: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    logger = logging.getLogger(NAME)
    logger.addFilter(interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            log.error("sent")
    finally:
        logger.removeFilter(interrupted)


@pytest.mark.usefixtures("raising")
def test_not_even_where_the_error_stream_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    stream.close()
    with pytest.raises(ValueError, match="filter"):
        logging.getLogger(NAME).error("sent")
    log.error("sent")
    assert stream.closed
