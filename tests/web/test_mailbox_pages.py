"""The pages of a mailbox: the messages that the mailer ``file`` has written."""
from __future__ import annotations

import os
import re
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from postcommit import FileMailer
from postcommit.web._mailbox import Mailbox
from tests.web.test_queue_pages import words


def deliver(mailbox: Path, subject: str, html: str = "") -> None:
    message = EmailMessage()
    message["Subject"] = subject
    message["From"] = "The Shop <shop@example.org>"
    message.set_content(f"Text of {subject}\n")
    if html:
        message.add_alternative(html, subtype="html")
    FileMailer(str(mailbox)).send("s@x.org", ["a@x.org", "b@x.org"], message)


def ids(app: Any) -> list[str]:
    return [m["id"] for m in app.get("/mailbox/mails.json").json["messages"]]


def test_the_newest_is_first(app: Any, mailbox: Path) -> None:
    for subject in ("Teapot", "Kettle ☕", ""):
        deliver(mailbox, subject)
    text = words(app.get("/mailbox/mails"))
    assert text.index("(no subject)") < text.index("Kettle ☕") < text.index("Teapot")
    assert "a@x.org, b@x.org s@x.org" in text
    found = app.get("/mailbox/mails.json").json
    assert found["mailbox"] == str(mailbox)
    letter = found["messages"][-1]
    assert (letter["subject"], letter["sender"]) == ("Teapot", "s@x.org")
    assert letter["recipients"] == ["a@x.org", "b@x.org"]
    assert re.fullmatch(r"20.*\+00:00", letter["written"])


def test_a_message_with_html(app: Any, mailbox: Path) -> None:
    deliver(mailbox, "Teapot", "<p>HTML of it <a href='http://x.org/'>here</a></p>")
    page = app.get("/mailbox/mails").click("Teapot")
    [id] = ids(app)
    assert f'<iframe sandbox="" src="/mailbox/mails/{id}/html" class="html"' in page
    assert 'class="phone"' in page.click("HTML, phone")
    assert "Text of Teapot" in page.click("Text")
    assert "The Shop &lt;shop@example.org&gt;" in page.click("Header")
    assert "Delivered-To: b@x.org" in page.click("Source")
    assert "http://x.org/" in page
    html = app.get(f"/mailbox/mails/{id}/html")
    assert "HTML of it" in html
    assert html.headers["Content-Security-Policy"].startswith("sandbox;")
    [path] = mailbox.iterdir()
    assert app.get(f"/mailbox/mails/{id}/source").body == path.read_bytes()


def test_a_message_as_json(app: Any, mailbox: Path) -> None:
    deliver(mailbox, "Teapot")
    [id] = ids(app)
    found = app.get(f"/mailbox/mails/{id}.json").json
    assert found["message"]["text"] == "Text of Teapot\n"
    assert found["recipients"] == ["a@x.org", "b@x.org"]


def test_a_view_that_the_message_does_not_have(app: Any, mailbox: Path) -> None:
    deliver(mailbox, "Teapot")
    [id] = ids(app)
    for view in ("html", "x", ""):
        page = app.get(f"/mailbox/mails/{id}?view={view}")
        assert "Text of Teapot" in page
        assert "<iframe" not in page


def test_a_page_has_200_messages(app: Any, mailbox: Path) -> None:
    mailbox.mkdir()
    for number in range(250):
        (mailbox / f"{number}.abc.eml").write_bytes(b"Subject: n%d\n\n" % number)
    page = app.get("/mailbox/mails")
    assert page.text.count('<th scope="row">') == 200
    last = page.click("Next page")
    assert last.text.count('<th scope="row">') == 50
    assert last.click("First page").text.count('<th scope="row">') == 200
    assert "250 messages" in app.get("/")
    found = app.get("/mailbox/mails.json").json
    assert len(found["messages"]) == 200
    assert len(app.get(f"/mailbox/mails.json{found['next']}").json["messages"]) == 50


def test_an_empty_mailbox(app: Any, mailbox: Path) -> None:
    assert "No message is here." in app.get("/mailbox/mails")
    assert not mailbox.exists()


@pytest.mark.parametrize(
    "id",
    [
        "0.abc",
        "..",
        "x",
        "1.abc/x",
        "1.abc/part/0",
        "1.abc/part/9",
        "%2e%2e%2fqueue",
        "secret",
        "2.abc",
        "3.abc",
        "1.ABC",
        "%D9%A1.abc",
    ],
)
def test_no_other_file_is_read(app: Any, mailbox: Path, id: str) -> None:
    mailbox.mkdir()
    (mailbox / "1.abc.eml").write_bytes(b"Subject: x\n\ntext\n")
    (mailbox / "secret.eml").write_bytes(b"Subject: secret\n\n")
    (mailbox / "2.abc").write_bytes(b"Subject: secret\n\n")
    (mailbox / "5.abc.eml.part").write_bytes(b"Subject: half\n\n")
    os.symlink("/etc/passwd", mailbox / "3.abc.eml")
    assert app.get(f"/mailbox/mails/{id}", status="*").status_int in (404, 503)


def test_other_files_are_not_listed(app: Any, mailbox: Path) -> None:
    mailbox.mkdir()
    for name in ("secret.eml", "2.abc", "5.abc.eml.part", "1.abc.eml"):
        (mailbox / name).write_bytes(b"Subject: x\n\ntext\n")
    assert ids(app) == ["1.abc"]


@pytest.mark.parametrize("start", ["x", "-1", "9" * 30])
def test_a_start_that_is_not_a_number(app: Any, start: str) -> None:
    assert start in app.get(f"/mailbox/mails?start={start}", status=400)


def test_a_folder_that_cannot_be_read(app: Any, mailbox: Path) -> None:
    mailbox.write_text("a file")
    for url in ("/mailbox/mails", "/mailbox/mails/1.abc"):
        assert "Not a directory" in app.get(url, status=503)
    page = app.get("/", status=503)
    assert "Not a directory" in page


def test_an_unknown_mailbox(app: Any) -> None:
    app.get("/mailbox/other", status=404)


def test_a_message_that_goes_meanwhile(
    app: Any, mailbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(mailbox, "Teapot")
    deliver(mailbox, "Kettle")
    listed = Mailbox.ids

    def gone_at_once(self: Mailbox) -> list[str]:
        found = listed(self)
        os.unlink(mailbox / f"{found[-1]}.eml")
        return found

    monkeypatch.setattr(Mailbox, "ids", gone_at_once)
    text = words(app.get("/mailbox/mails"))
    assert "Kettle" in text
    assert "Teapot" not in text


def test_a_very_long_subject(app: Any, mailbox: Path) -> None:
    mailer = FileMailer(str(mailbox))
    mailer.send("a@x.org", "b@x.org", b"Subject: " + b"x" * 50_000 + b"\n\ntext\n")
    page = app.get("/mailbox/mails")
    assert len(page.text) < 10_000
    assert len(page.click("xxx").text) < 10_000
