"""Where options come from, which one counts, and how a bad one is refused."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from postcommit import SMTPMailer
from postcommit._cli import main as cli
from postcommit._cli.configuration import Configuration
from postcommit.errors import ConfigError
from postcommit.errors import OptionError


def told(*argv: str, environ: Mapping[str, str] | None = None) -> Configuration:
    return Configuration(cli._parser().parse_args(["run", *argv]), environ or {})


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "shop.ini"
    path.write_text(text)
    return str(path)


def made(configuration: Configuration) -> tuple[Any, Any]:
    mailer = configuration.mailer()
    return mailer, configuration.processor(mailer)


# Which one counts


def test_the_command_line_goes_before_the_environment_before_the_file(
    tmp_path: Path,
) -> None:
    text = "[postcommit]\nport = 3\nworkers = 3\nusername = file\ntimeout = 3\n"
    environ = {
        "POSTCOMMIT_CONFIG": file(tmp_path, text + "password = 3\n"),
        "POSTCOMMIT_PORT": "2",
        "POSTCOMMIT_WORKERS": "2",
        "POSTCOMMIT_TIMEOUT": " ",
        "POSTCOMMIT_QUEUE_PATH": "elsewhere",
    }
    mailer, processor = made(told("queue", "--port", "1", environ=environ))
    assert (mailer.port, processor.workers, mailer.username) == (1, 2, "file")
    assert (mailer.timeout, mailer.hostname) == (3, "localhost")
    assert processor.queuePath == os.path.abspath("queue")
    assert told(environ=environ).queue_path == "elsewhere"


def test_the_file_named_by_an_argument_goes_before_the_one_of_the_environment(
    tmp_path: Path,
) -> None:
    path = file(tmp_path, "[postcommit]\nport = 3\n")
    environ = {"POSTCOMMIT_CONFIG": "not there"}
    assert told("q", "--config", path, environ=environ).mailer().port == 3


# Files of the older libraries

OLDER = """
[server:main]
port = 8080

[{section}]
hostname = 127.0.0.7
port = 2525
username = shop
password = 100%%
queue_path = var/queue
{more}
"""


@pytest.mark.parametrize(
    ("section", "more", "tls"),
    [
        ("app:zope-sendmail", "interval = 1.5\nforce_tls = True", "starttls"),
        ("app:zope-sendmail", "no_tls = yes\nforce_tls = False", "none"),
        ("app:qp", "debug_smtp = False", "auto"),
        ("app:qp", "ssl = True", "implicit"),
        ("app:qp", "ssl = True\nforce_tls = 1", "implicit"),
    ],
)
def test_files_of_older_libraries(
    section: str, more: str, tls: str, tmp_path: Path
) -> None:
    path = file(tmp_path, OLDER.format(section=section, more=more))
    mailer, processor = made(told("--config", path))
    assert (mailer.hostname, mailer.port, mailer.tls) == ("127.0.0.7", 2525, tls)
    assert (mailer.username, mailer.password) == ("shop", "100%")
    assert processor.queuePath == os.path.abspath("var/queue")
    assert processor.pollingInterval == (1500 if "interval" in more else 5000)


def test_an_empty_option_is_like_none(tmp_path: Path) -> None:
    path = file(tmp_path, "[postcommit]\nport =\nusername =\nworkers = 2\n")
    mailer, processor = made(told("q", "--config", path))
    assert (mailer.port, mailer.username, processor.workers) == (25, None, 2)


def test_an_empty_argument_goes_before_the_environment() -> None:
    environ = {"POSTCOMMIT_CAFILE": "ca.pem", "POSTCOMMIT_USERNAME": "me"}
    mailer = told("q", "--cafile", "", "--username", "", environ=environ).mailer()
    assert (mailer.cafile, mailer.username) == (None, None)


def test_their_none_is_none_and_their_defaults_are_read(tmp_path: Path) -> None:
    text = "[DEFAULT]\nhere = /srv\nhostname = mx\n[app:qp]\nusername = None\n"
    text += "password = None\nqueue_path = %(here)s/queue\n"
    mailer, processor = made(told("--config", file(tmp_path, text)))
    assert (mailer.hostname, mailer.username, mailer.password) == ("mx", None, None)
    assert processor.queuePath == "/srv/queue"


# The password


def secret(tmp_path: Path, text: str = "s%cret \n") -> str:
    path = tmp_path / "password"
    path.write_text(text)
    return str(path)


def test_the_password_may_be_in_a_file(tmp_path: Path) -> None:
    path = secret(tmp_path)
    argv = ("q", "--username", "u")
    ini = file(tmp_path, f"[postcommit]\npassword_file = {path}\n")
    folder = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    for source in (
        told(*argv, "--password-file", path),
        told(*argv, environ={"POSTCOMMIT_PASSWORD_FILE": path}),
        told(*argv, environ=folder),
        told(*argv, "--config", ini),
    ):
        assert source.mailer().password == "s%cret "
    plain = {**folder, "POSTCOMMIT_PASSWORD": "other"}
    assert told(*argv, environ=plain).mailer().password == "other"
    assert told("--password-file", path, *argv, environ=plain).mailer().password != (
        "other"
    )


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("password", ""),
        ("amqp_password", "amqp_url = amqps://u@broker"),
        ("receive_password", "receive_url = amqps://u@broker"),
    ],
)
def test_each_password_comes_from_the_first_source_that_has_it(
    name: str, option: str, tmp_path: Path
) -> None:
    text = f"[postcommit]\nqueue_path = q\nusername = u\n{option}\n"
    ini = ("--config", file(tmp_path, f"{text}{name} = file\n"))
    for source in ("credentials", "argument"):
        (tmp_path / source).mkdir()
        (tmp_path / source / name).write_text(source)
    flag = name.replace("_", "-")
    argument = (f"--{flag}-file", f"{tmp_path}/argument/{name}")
    variable = {f"POSTCOMMIT_{name.upper()}": "variable"}
    folder = {"CREDENTIALS_DIRECTORY": f"{tmp_path}/credentials"}
    for argv, environ, expected in (
        ((*argument, *ini), {**variable, **folder}, "argument"),
        (ini, {**variable, **folder}, "variable"),
        (ini, folder, "credentials"),
        (ini, {}, "file"),
    ):
        # A password of another option does not matter.
        others: list[dict[str, str]] = [{}]
        if name != "password":
            others.append({"POSTCOMMIT_PASSWORD": "other"})
        for other in others:
            found = password_of(name, *argv, environ={**other, **environ})
            assert found == expected
    (tmp_path / "credentials" / name).write_text("not\na password\n")
    environ = {**variable, **folder}
    assert password_of(name, *ini, environ=environ) == "variable", "it was read"


def password_of(name: str, *argv: str, environ: Mapping[str, str]) -> str:
    command = "receive" if name == "receive_password" else "run"
    options = cli._parser().parse_args([command, *argv])
    found = Configuration(options, environ)
    made: Any = found.receiver() if command == "receive" else found.mailer()
    return str(made.password)


def test_systemd_may_have_no_password_for_us(tmp_path: Path) -> None:
    folder = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert told("q", environ=folder).mailer().password is None


@pytest.mark.parametrize("given", [["--password", "hunter2"], ["--password=hunter2"]])
def test_no_password_on_the_command_line(given: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as info:
        told("q", "--username", "u", *given)
    assert info.value.code == 2
    err = capsys.readouterr().err
    assert "--password-file" in err
    assert "hunter2" not in err


@pytest.mark.parametrize("text", ["", "\n", "a\nb\n"])
def test_a_file_that_is_no_password_is_refused(text: str, tmp_path: Path) -> None:
    path = secret(tmp_path, text)
    with pytest.raises(ConfigError, match="in its only line"):
        told("q", "--username", "u", "--password-file", path)


def test_a_password_file_that_cannot_be_read_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "hunter2").write_bytes(b"\xff")
    for path, reason in (
        ("hunter2", "No such file"),
        (str(tmp_path / "hunter2"), "UTF-8"),
        (f"{tmp_path}/hunter2/below", "Not a directory"),
        ("hunter2\0", "UTF-8"),
    ):
        with pytest.raises(ConfigError, match=reason) as info:
            told("q", "--username", "u", "--password-file", path)
        assert "hunter2" not in str(info.value)
        assert "--password-file" in str(info.value)


def test_a_password_file_that_cannot_be_read_is_named_if_its_folder_exists(
    tmp_path: Path,
) -> None:
    path = f"{tmp_path}/shop.password"
    with pytest.raises(ConfigError) as caught:
        told("q", "--username", "u", "--password-file", path)
    reason = f"the file {path!r} cannot be read: No such file or directory"
    assert str(caught.value) == f"command line: --password-file='***': {reason}"
    with pytest.raises(ConfigError, match="below the working directory"):
        told("q", "--username", "u", "--password-file", "shop.password")


def test_what_is_missing_is_not_shown_as_none() -> None:
    with pytest.raises(OptionError, match=r"^queue_path: name the queue"):
        made(told())
    with pytest.raises(OptionError, match=r"^password: is needed with a username"):
        told("q", "--username", "u").mailer()


@pytest.mark.parametrize("section", ["pre-commit", "post-commit", "postcommits:x"])
def test_a_section_of_another_program_may_have_a_similar_name(
    section: str, tmp_path: Path
) -> None:
    path = file(tmp_path, f"[postcommit]\nport = 3\n[{section}]\nhook = x\n")
    assert told("q", "--config", path).mailer().port == 3


def test_two_accounts_at_one_relay(tmp_path: Path) -> None:
    text = "[postcommit]\nhostname = mx\n[postcommit:b]\nhostname = mx\n"
    path = file(tmp_path, text + "username = b\npassword = 50%(x)s\n")
    assert relays(told("q", "--config", path)) == [("mx", 25), ("mx", 25)]


def test_a_password_without_a_user_or_a_user_without_one(tmp_path: Path) -> None:
    environ = {"POSTCOMMIT_PASSWORD": "hunter2"}
    with pytest.raises(ConfigError, match="no effect without a username") as info:
        told("q", environ=environ)
    assert "hunter2" not in str(info.value)
    with pytest.raises(OptionError, match="--password-file"):
        told("q", "--username", "u").mailer()
    wrong = {"POSTCOMMIT_PASSWORD": "two\nlines"}
    with pytest.raises(ConfigError, match="POSTCOMMIT_PASSWORD='") as info:
        told("q", "--username", "u", environ=wrong).mailer()
    assert "lines'" not in str(info.value)


@pytest.mark.parametrize("section", ["app:zope-sendmail", "app:qp"])
def test_half_a_login_in_a_file_of_an_older_library_is_none(
    section: str, tmp_path: Path
) -> None:
    for lone in ("username = me", "password = x", "username = me\npassword = None"):
        ini = file(tmp_path, f"[{section}]\n{lone}\nqueue_path = q\n")
        mailer = told("--config", ini).mailer()
        assert (mailer.username, mailer.password) == (None, None)
    # Ours may have the other half in the environment.
    ini = file(tmp_path, f"[{section}]\nusername = me\n")
    mailer = told("--config", ini, environ={"POSTCOMMIT_PASSWORD": "x"}).mailer()
    assert (mailer.username, mailer.password) == ("me", "x")


# What is refused

ZOPE = "[app:zope-sendmail]\n"
QP = "[app:qp]\n"
OURS = "[postcommit]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{OURS}port = 0", ["[postcommit]", "port='0'", "from 1 to 65535"]),
        (f"{OURS}port = many", ["[postcommit]", "port='many'", "whole number"]),
        (f"{OURS}prot = 1", ["[postcommit]", "prot", "do you mean port?"]),
        (f"{OURS}tls = maybe", ["tls='maybe'", "'starttls'"]),
        (f"{OURS}log_level = loud", ["log_level='loud'", "debug, info"]),
        (f"{OURS}min_backoff = 9\nmax_backoff = 8", ["max_backoff='8'", "min_backoff"]),
        (f"{OURS}min_backoff = 9999", ["max_backoff=4000.0", "min_backoff=9999.0"]),
        (
            f"{OURS}hostname = mx.example.org\nusername = u\npassword = p\ntls = none",
            ["username='u'", "in clear to 'mx.example.org', and tls forbids TLS"],
        ),
        (
            f"{QP}hostname = mx.example.org\nusername = u\npassword = p\nno_tls = yes",
            ["[app:qp]: username='u'", "and no_tls forbids TLS"],
        ),
        (f"{OURS}hots = mx", ["no such option; do you mean hostname?"]),
        (f"{OURS}failover_mailers = mx2", ["no such option; do you mean failover?"]),
        (f"{OURS}backup.host = mx", ["section of its own, [postcommit:backup]"]),
        (f"{OURS}queue_path = %(here)s/q", ["%(here)s is not replaced here"]),
        ("[Postcommit]\nport = 1", ["do you mean [postcommit]?"]),
        (f"{OURS}smtp_host = mx", ["no such option; do you mean hostname?"]),
        (f"{OURS}force_tls = true", ["no such option; do you mean tls?"]),
        (f"{OURS}password = a\npassword_file = b", ["password is there", "remove one"]),
        (f"{ZOPE}interval = soon", ["[app:zope-sendmail]", "interval='soon'"]),
        (f"{ZOPE}interval = inf", ["interval='inf'", "number of seconds"]),
        (f"{ZOPE}interval = 0", ["interval=0", "at least 1"]),
        (f"{ZOPE}ssl = true", ["[app:zope-sendmail]", "ssl", "no such option"]),
        (f"{ZOPE}force_tls = yes\nno_tls = yes", ["no_tls='yes'", "force_tls"]),
        (f"{ZOPE}force_tls = perhaps", ["force_tls='perhaps'", "true or false"]),
        (f"{ZOPE}password = 5%", ["password='***'", "%%"]),
        (f"{QP}debug_smtp = true", ["debug_smtp='true'", "--log-level debug"]),
        (f"{QP}{ZOPE}", ["[app:zope-sendmail] and [app:qp]", "all but one"]),
        ("[other]\na = b", ["add a section [postcommit]"]),
        ("port = 25", ["shop.ini: line 1", "[section]"]),
        (f"{OURS}hunter2", ["line 2", "key = value"]),
        (f"{OURS}port = 1\nport = 2", ["line 3", "port"]),
        (f"{OURS}{OURS}", ["line 2", "[postcommit]"]),
        (f"{OURS}username = \N{SNOWMAN}\xff", ["UTF-8"]),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_says_where_and_what(
    text: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "shop.ini"
    path.write_bytes(text.encode("utf-16" if "UTF-8" in words else "utf-8"))
    with pytest.raises(OptionError) as info:
        made(told("q", "--config", str(path)))
    for word in words:
        assert word in str(info.value)
    assert "hunter2" not in str(info.value)
    assert str(path) in str(info.value)


def test_a_bad_variable_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"POSTCOMMIT_PROT.*do you mean port"):
        told("q", environ={"POSTCOMMIT_PROT": "25"})
    with pytest.raises(ConfigError, match="environment: POSTCOMMIT_PORT='0': must be"):
        told("q", environ={"POSTCOMMIT_PORT": "0"}).mailer()
    with pytest.raises(OptionError, match="name the queue"):
        made(told())


def test_a_bad_argument_is_refused_in_one_line(capsys: Any) -> None:
    with pytest.raises(SystemExit) as info:
        told("q", "--port", "0")
    assert info.value.code == 2
    err = capsys.readouterr().err
    assert "--port: '0': must be a whole number from 1 to 65535" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "flush", "test-relay"])
def test_a_command_with_a_bad_file_changes_nothing(
    command: str, tmp_path: Path, capsys: Any
) -> None:
    path = file(tmp_path, "[postcommit]\nqueue_path = queue\nport = 0\n")
    assert cli.main([command, "--config", path]) == 2
    told = f"postcommit: {path}, [postcommit]: port='0': must be"
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith(told)) == ("", 1, True)
    assert not Path("queue").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        told("q", "--config", str(tmp_path / "absent.ini"))


def test_how_to_log(tmp_path: Path) -> None:
    path = file(tmp_path, "[postcommit]\nlog_level = DEBUG\nlog_format = json\n")
    found = told("q", "--config", path)
    assert (found.log_level("info"), found.log_format) == ("debug", "json")
    found = told("q", "--config", path, "--log-level", "error")
    assert found.log_level("info") == "error"
    assert (told("q").log_level("info"), told("q").log_format) == ("info", "text")


# Several relays


def relays(found: Configuration) -> list[tuple[str, int]]:
    mailer: Any = found.mailer()
    return [(relay.hostname, relay.port) for relay in mailer.mailers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mx2", ("mx2", 587)),
        ("mx2:25", ("mx2", 25)),
        ("192.0.2.1:25", ("192.0.2.1", 25)),
        ("2001:db8::1", ("2001:db8::1", 587)),
        ("[2001:db8::1]", ("2001:db8::1", 587)),
        ("[2001:db8::1]:25", ("2001:db8::1", 25)),
    ],
)
def test_further_hosts_with_the_same_options(
    text: str, expected: tuple[str, int]
) -> None:
    argv = ("q", "--hostname", "mx1", "--port", "587", "--tls", "starttls")
    login = {"POSTCOMMIT_USERNAME": "me", "POSTCOMMIT_PASSWORD": "secret"}
    found = told(*argv, "--failover", text, environ=login)
    assert relays(found) == [("mx1", 587), expected]
    for _, relay in found.named_relays():
        assert (relay.tls, relay.username, relay.password) == (
            "starttls",
            "me",
            "secret",
        )


def test_several_further_hosts(tmp_path: Path) -> None:
    expected = [("localhost", 25), ("mx2", 25), ("mx3", 587)]
    path = file(tmp_path, "[postcommit]\nfailover = mx2, mx3:587\n")
    environ = {"POSTCOMMIT_FAILOVER": "mx2 mx3:587"}
    assert relays(told("q", "--config", path)) == expected
    assert relays(told("q", environ=environ)) == expected
    argv = ("q", "--failover", "mx2", "--failover", "mx3:587")
    assert relays(told(*argv, environ={"POSTCOMMIT_FAILOVER": "mx9"})) == expected
    mailer = told("q", "--failover", "", environ=environ).mailer()
    assert type(mailer) is SMTPMailer


RELAYS = """
[postcommit]
hostname = mx1
username = me
password = secret
failover = mx2
failover_retry_after = 30

[other]
hostname = mx9

[postcommit:provider]
hostname = smtp.example.org
port = 465
tls = implicit
username = shop
password_file = {password}

[postcommit:local]
hostname = localhost
port = 2525
"""


def test_sections_for_further_relays(tmp_path: Path) -> None:
    path = file(tmp_path, RELAYS.format(password=secret(tmp_path)))
    found = told("q", "--config", path)
    mailer: Any = found.mailer()
    assert mailer.retry_after == 30.0
    assert relays(found) == [
        ("mx1", 25),
        ("mx2", 25),
        ("smtp.example.org", 465),
        ("localhost", 2525),
    ]
    provider, local = mailer.mailers[2:]
    assert (provider.tls, provider.username) == ("implicit", "shop")
    assert provider.password == "s%cret "
    assert (local.tls, local.username, local.password) == ("auto", None, None)


@pytest.mark.parametrize(
    ("argv", "text", "words"),
    [
        (["--failover-retry-after", "5"], "", ["--failover-retry-after=5.0: has no"]),
        (["--failover", "mx2:0"], "", ["command line: --failover='mx2:0': the port"]),
        (["--failover", "mx2:smtp"], "", ["--failover='mx2:smtp': the port must be a"]),
        (["--failover", "me:pw@mx2"], "", ["--failover='***@mx2'", "must be a"]),
        (["--failover", "smtp://me:p,pw@mx2"], "", ["--failover='smtp://***@mx2'"]),
        (
            ["--failover", "mx2"],
            "username = u\npassword = x\ntls = none\n",
            ["username='u': a login is never sent in clear to 'mx2'"],
        ),
        (["--failover", "smtp://mx2"], "", ["--failover", "must be"]),
        (["--failover", "localhost"], "", ["the relay localhost:25 is there twice"]),
        (["--failover", "a a"], "", ["the relay a:25 is there twice"]),
        (["--failover", "::1 [::1]:25"], "", ["the relay [::1]:25 is there twice"]),
        ([], "[postcommit:b]\n", ["[postcommit:b]: hostname: name the relay"]),
        ([], "[postcommit:b]\nport = 26", ["[postcommit:b]: hostname: name the relay"]),
        ([], "[postcommit:b]\nhostname=LOCALHOST", ["first as [postcommit]"]),
        (
            [],
            "[postcommit:b]\nhostname = mx\n[postcommit:c]\nhostname = mx",
            ["[postcommit:c]: hostname='mx'", "twice, first as [postcommit:b]"],
        ),
        ([], "[postcommit:b]\nprot = 1", ["[postcommit:b]: prot=", "do you mean port"]),
        ([], "[postcommit:b]\nhostname=b\nport=0", ["b]: port='0': must be"]),
        ([], "[postcommit:b]\nworkers = 3", ["workers='***': there is no such"]),
        ([], "[postcommit:b]\nhostname=b\nusername=u", ["username='u': needs a pass"]),
        (
            [],
            "[postcommit:b]\nhostname = b\npassword = u",
            ["password='***': has no effect"],
        ),
        ([], "[postcommit.b]\nport = 1", ["do you mean [postcommit:b]?"]),
        ([], "[postcommit b]\nport = 1", ["do you mean [postcommit:b]?"]),
        ([], "[postcommit-b]\nport = 1", ["do you mean [postcommit:b]?"]),
        ([], "[Postcommit:b]\nport = 1", ["do you mean [postcommit:b]?"]),
        ([], "[POSTCOMMIT]\na = 1", ["do you mean [postcommit]?"]),
        ([], "[postcommitt:b]\nport = 1", ["do you mean [postcommit:b]?"]),
        ([], "[postcomit]\nport = 1", ["do you mean [postcommit]?"]),
        ([], "[ postcommit:b ]\nport = 1", ["do you mean [postcommit:b]?"]),
        ([], "[postcommit:]\nport = 1", ["[postcommit:] has no name"]),
    ],
)
def test_relays_that_can_never_work(
    argv: list[str], text: str, words: list[str], tmp_path: Path
) -> None:
    path = file(tmp_path, f"[postcommit]\nworkers = 2\n{text}")
    with pytest.raises(OptionError) as caught:
        told("q", *argv, "--config", path).mailer()
    for word in words:
        assert word in str(caught.value)
    assert "pw" not in str(caught.value)
