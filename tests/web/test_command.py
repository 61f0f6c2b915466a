"""``postcommit web`` and ``postcommit demo --web``: the page on this machine."""
from __future__ import annotations

import base64
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postcommit._cli import web
from postcommit._cli.main import main
from postcommit._maildir.store import Store
from postcommit.web import _login
from tests.support.queues import fill
from tests.support.service import COMMAND
from tests.support.service import ROOT
from tests.support.service import command
from tests.support.service import environment
from tests.support.service import logging_restored


PATIENCE = 60


@pytest.fixture(autouse=True)
def _apart(commands_apart: None) -> None:
    """Every test here calls a command."""


class Served:
    """A page that a command serves; `url` is what it has printed."""

    def __init__(self, url: str, process: subprocess.Popen[str] | None = None) -> None:
        self.url = url
        self.process = process
        self.port = int(re.findall(r":(\d+)/", url)[0])

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.text = answer.read().decode()  # type: ignore[attr-defined]
        connection.close()
        return answer

    @property
    def path(self) -> str:
        """The path and query of the URL, with the token."""
        return self.url[self.url.index("/", 8) :]


@contextmanager
def serving(*argv: str) -> Iterator[Served]:
    """Run the command until the end of the block."""
    with subprocess.Popen(
        [*COMMAND, *argv],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        found = next((line for line in lines if "The page is at " in line), "")
        try:
            assert found, process.stderr and process.stderr.read()
            yield Served(found.split()[-1], process)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)


def cookie_of(answer: http.client.HTTPResponse) -> str:
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


def test_a_token_and_then_a_cookie(store: Store) -> None:
    fill(store)
    argv = ["web", store.path, "--listen", "127.0.0.1:0"]
    with serving(*argv, "--host", "mail.example.org") as page:
        assert page.get("/?token=x", Host="mail.example.org").status == 403
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{30,}", page.url)
        assert page.get("/").status == 403
        assert page.get("/?token=wrong").status == 403
        first = page.get(page.path)
        assert (first.status, first.headers["Location"]) == (303, "/")
        for attribute in ("HttpOnly", "SameSite=Strict"):
            assert attribute in first.headers["Set-Cookie"]
        cookie = cookie_of(first)
        assert page.url.partition("token=")[2] not in cookie
        seen = page.get("/queue/queue", Cookie=cookie)
        assert seen.status == 200
        assert "Teapot" in seen.text  # type: ignore[attr-defined]
        assert page.get("/", Cookie=f"{cookie}x").status == 403
        assert page.get("/", Cookie=cookie, Host="evil.example.org").status == 403
        assert page.get("/", Cookie=cookie, Host="mail.example.org").status == 200
    assert page.process is not None
    assert page.process.returncode == 0


def test_a_password(store: Store, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("# name:password\n\nolga:se:cret\nann:ü\n")
    argv = ["web", store.path, "--listen", "127.0.0.1:0"]
    with serving(*argv, "--password-file", str(passwords)) as page:
        assert "token" not in page.url
        answer = page.get("/")
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        for given, status in [
            ("olga:se:cret", 200),
            ("ann:ü", 200),
            ("olga:wrong", 401),
            ("eve:", 401),
            ("eve:se:cret", 401),
            (":", 401),
        ]:
            basic = base64.b64encode(given.encode()).decode()
            assert page.get("/", Authorization=f"Basic {basic}").status == status
        for wrong in ("Basic", "Basic %", "Basic /w==", "Bearer x"):
            assert page.get("/", Authorization=wrong).status == 401


def test_clients_of_http_1_0_and_a_proxy(store: Store) -> None:
    """A request without a Host is refused, and a forwarded host is not believed."""
    with serving("web", store.path, "--listen", "127.0.0.1:0") as page:
        for head, status in [
            ("GET / HTTP/1.0\r\n", b"403"),
            ("GET / HTTP/1.1\r\nConnection: close\r\n", b"403"),
            ("GET / HTTP/1.0\r\nHost: a\r\nX-Forwarded-Host: localhost\r\n", b"403"),
            (f"GET {page.path} HTTP/1.0\r\nHost: localhost\r\n", b"303"),
            (f"GET /{page.path} HTTP/1.0\r\nHost: localhost\r\n", b"303"),
        ]:
            with socket.create_connection(("127.0.0.1", page.port)) as connection:
                connection.settimeout(PATIENCE)
                connection.sendall(f"{head}\r\n".encode())
                answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))
            assert answer.split()[1] == status
            assert b"Location: //" not in answer


def test_a_mailbox_alone(tmp_path: Path) -> None:
    folder = str(tmp_path / "mails")
    with serving("web", "--mailbox", folder, "--listen", "127.0.0.1:0") as page:
        cookie = cookie_of(page.get(page.path))
        answer = page.get("/mailbox/mails", Cookie=cookie)
        assert "No message is here." in answer.text  # type: ignore[attr-defined]


def test_the_demo_leaves_its_page_open() -> None:
    with serving("demo", "--web") as page:
        cookie = cookie_of(page.get(page.path))
        queue = page.get("/queue/queue", Cookie=cookie)
        assert "550 5.1.1 No such user" in queue.text  # type: ignore[attr-defined]
        mailbox = page.get("/mailbox/mailbox", Cookie=cookie)
        assert mailbox.text.count("Your ") == 5  # type: ignore[attr-defined]
    assert page.process is not None
    assert page.process.returncode == 0


# What is refused


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "name a queue, or a --mailbox"),
        (["{queue}", "--listen", "0.0.0.0:0"], "needs --password-file"),
        (["{queue}", "--listen", "[::]:0"], "needs --password-file"),
        (["{queue}", "--listen", "example.org:0"], "needs --password-file"),
        (["{queue}", "--listen", "127.0.0.1"], "must be ADDRESS:PORT"),
        (["{queue}", "--listen", ":8025"], "must be ADDRESS:PORT"),
        (["{queue}", "--listen", "127.0.0.1:x"], "must be ADDRESS:PORT"),
        (["{queue}", "--listen", "127.0.0.1:99999"], "must be ADDRESS:PORT"),
        (["{queue}", "--listen", "[::1:0"], "must be ADDRESS:PORT"),
        (["{queue}", "--listen", "u@127.0.0.1:1/x"], "must be ADDRESS:PORT"),
        (["{queue}-none"], "queue-none"),
        (["{queue}-none", "--listen", "localhost:0"], "queue-none"),
        (["postgresql://127.0.0.1:1/x?connect_timeout=1"], "127.0.0.1"),
        (["{queue}", "--password-file", "{queue}-none"], "No such file"),
    ],
)
def test_arguments_that_can_never_work(
    store: Store, capsys: pytest.CaptureFixture[str], argv: list[str], reason: str
) -> None:
    argv = [word.format(queue=store.path) for word in argv]
    if "--listen" not in argv:
        argv += ["--listen", "127.0.0.1:0"]
    with logging_restored():
        assert main(["web", *argv]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize("text", ["olga", "olga:", "# only:comment", ""])
def test_a_password_file_without_passwords(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"{text}\n")
    argv = ["web", store.path, "--password-file", str(path)]
    with logging_restored():
        assert main([*argv, "--listen", "127.0.0.1:0"]) == 2
    err = capsys.readouterr().err
    assert "NAME:PASSWORD" in err
    assert "olga" not in err


def test_a_port_that_is_taken(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, logging_restored():
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["web", store.path, "--listen", listen]) == 2
    assert "in use" in capsys.readouterr().err


def test_an_extra_that_is_missing(store: Store) -> None:
    for module in ("webob", "waitress", "chameleon"):
        code = f"import sys; sys.modules[{module!r}] = None\n"
        code += "from postcommit._cli.main import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "web", store.path],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"{module} is missing; install it: pip install 'postcommit[web]'" in (
            done.stderr
        )


# In this process


def test_it_listens_at_ipv6_and_at_localhost() -> None:
    for address in ("::1", "localhost"):
        with web.Page(address, 0) as page:
            assert re.match(r"http://(\[::1\]|localhost):\d+/\?token=", page.url)


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert web._user() == command_user()
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert web._user() == "user 4000000"


def command_user() -> str:
    return subprocess.run(
        ["id", "-un"], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_passwords_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("a:b\n#c:d\n e:f:g \n")
    assert _login.passwords_of(str(path)) == {"a": "b", "e": "f:g"}
    path.write_text("\ufeffa:b\r\n")  # as an editor of Windows writes it
    assert _login.passwords_of(str(path)) == {"a": "b"}


@pytest.mark.parametrize(("mode", "warns"), [(0o600, 0), (0o640, 0), (0o604, 1)])
def test_a_password_file_that_every_user_can_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: int
) -> None:
    path = tmp_path / "passwords"
    path.write_text("olga:secret\n")
    path.chmod(mode)
    assert _login.passwords_of(str(path)) == {"olga": "secret"}
    assert len(caplog.records) == warns
    assert "secret" not in caplog.text
    assert ("every user can read" in caplog.text) == bool(warns)


@pytest.mark.parametrize("host", ["http://shop.example.org", "a:80", "*", ""])
def test_a_host_that_no_request_can_have(
    store: Store, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    with logging_restored():
        assert main(["web", store.path, "--host", host]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"--host={host!r}" in line
    assert "without a port" in line


def test_help_names_the_command() -> None:
    done = command("web", "--help")
    assert "--password-file" in done.stdout
    assert "127.0.0.1:8025" in done.stdout
