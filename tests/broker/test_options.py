"""The options of a broker: each that can never work is refused, and shows no secret."""
from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis.strategies import characters
from hypothesis.strategies import text as any_text
from zope.schema import getFieldsInOrder

from postcommit import AMQPMailer
from postcommit import OptionError
from postcommit import QueueReceiver
from postcommit import SMTPMailer
from postcommit._amqp.place import Place
from postcommit._amqp.place import parsed_url
from postcommit._config.options import fields_of
from postcommit.interfaces import IAMQPMailer
from postcommit.interfaces import IQueueReceiver
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import ITLSOptions


# Any characters but lone surrogates, which no URL can have.
TEXT = any_text(characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("amqp://mq", Place(False, (("mq", 5672),), "/", None)),
        ("amqp://mq/", Place(False, (("mq", 5672),), "/", None)),
        ("amqps://mq/%2F", Place(True, (("mq", 5671),), "/", None)),
        ("AMQPS://mq:1/mail", Place(True, (("mq", 1),), "mail", None)),
        ("amqps://u@mq/m%2Fx", Place(True, (("mq", 5671),), "m/x", "u")),
        ("amqps://u:p%40%3A@mq/", Place(True, (("mq", 5671),), "/", "u", "p@:")),
        ("amqps://u:@mq/", Place(True, (("mq", 5671),), "/", "u", "")),
        (
            "amqp://a,b:2,[::1],[::1]:3/v",
            Place(False, (("a", 5672), ("b", 2), ("::1", 5672), ("::1", 3)), "v", None),
        ),
    ],
)
def test_a_url(url: str, place: Place) -> None:
    assert parsed_url(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "mq",
        "http://mq/",
        "amqp:/mq",
        "amqp://",
        "amqp:///mail",
        "amqp://u:p@",
        "amqp://mq:0/",
        "amqp://mq:65536/",
        "amqp://mq:x/",
        "amqp://mq/a/b",
        "amqp://m q/",
        "amqp://mq,/",
        "amqp://[::1/",
        "amqp://mq?heartbeat=1",
        "amqp://mq/#x",
        "amqp://u:s3cr@t@mq/",
        "amqp://u:s3cr/t@mq/",
        "amqp://u:s3cr%ff@mq/",
        "amqps://%ff@mq/",
        "amqps://[1.2.3.4.5]/",
        "amqps://[::1%25eth0]/",
        "amqps://mq/" + "v" * 256,
        "amqps://mq/" + "%C3%A9" * 128,
        "",
    ],
)
def test_a_url_that_can_never_work(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        AMQPMailer(url)
    assert caught.value.name == "url"
    assert "s3cr" not in str(caught.value)


def test_a_place_is_shown_without_its_password() -> None:
    url = "amqps://shop:s3cret@a,[::1]:1/mail"
    place = parsed_url(url)
    assert str(place) == "amqps://shop@a:5671,[::1]:1/mail"
    assert "s3cret" not in repr(place)
    assert repr(AMQPMailer(url)) == f"<AMQPMailer {place}>"


@given(TEXT, TEXT, TEXT)
def test_any_user_password_and_vhost_may_be_in_a_url(
    user: str, password: str, vhost: str
) -> None:
    """They are as they were, and a place is shown as a URL in one line."""
    parts = [quote(part, safe="") for part in (user, f"-{password}-", vhost)]
    url = "amqps://{}:{}@mq/{}".format(*parts)
    place = parsed_url(url)
    assert (place.username, place.password) == (user, f"-{password}-")
    assert place.vhost == vhost
    shown = str(place)
    assert shown.isprintable()
    assert parsed_url(shown) == replace(place, password=None)


@pytest.mark.parametrize(
    ("url", "options", "name"),
    [
        ("amqps://u@mq", {}, "password"),
        ("amqps://mq", {"password": "s3cret"}, "password"),
        ("amqps://:s3cret@mq", {}, "password"),
        ("amqps://:s3cret@mq", {"certfile": "/cert"}, "password"),
        ("amqps://u:s3cret@mq", {"password": "s3cret"}, "password"),
        ("amqp://mq", {"cafile": "/ca"}, "cafile"),
        ("amqp://mq", {"certfile": "/cert"}, "certfile"),
        ("amqp://mq", {"server_name": "mq"}, "server_name"),
        ("amqps://mq", {"keyfile": "/key"}, "keyfile"),
        ("amqps://mq", {"window": 0}, "window"),
        ("amqps://mq", {"max_size": 0}, "max_size"),
        ("amqps://mq", {"timeout": 0}, "timeout"),
        ("amqps://mq", {"heartbeat": 0}, "heartbeat"),
        ("amqps://mq", {"queue": ""}, "queue"),
        ("amqps://mq", {"queue": "\N{SNOWMAN}" * 86}, "queue"),
        ("amqps://mq", {"notify": None}, "notify"),
    ],
)
def test_options_that_can_never_work(
    url: str, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(OptionError) as caught:
        AMQPMailer(url, **options)
    assert caught.value.name == name
    assert "s3cret" not in str(caught.value)
    traceback = caught.value.__traceback__
    while traceback is not None:
        assert "s3cret" not in repr(traceback.tb_frame.f_locals.get("given"))
        traceback = traceback.tb_next


TLS_OPTIONS = {"cafile", "verify", "certfile", "keyfile", "server_name"}


def test_the_options_of_tls_are_those_of_the_smtp_mailer() -> None:
    for contract in (ISMTPMailer, IAMQPMailer, IQueueReceiver):
        assert {n for n in contract if contract[n].interface is ITLSOptions} == (
            TLS_OPTIONS
        )
        assert [f.__name__ for f in fields_of(contract).values()][-5:] == list(
            dict(getFieldsInOrder(ITLSOptions))
        )


@pytest.mark.parametrize("name", sorted(TLS_OPTIONS - {"verify"}))
def test_an_option_of_tls_has_no_effect_in_clear(name: str) -> None:
    texts = []
    for make in (
        lambda **given: SMTPMailer(tls="none", **given),
        lambda **given: AMQPMailer("amqp://mq", **given),
        lambda **given: QueueReceiver("amqp://mq", "q", "queue", **given),
    ):
        with pytest.raises(OptionError, match="has no effect with") as caught:
            make(**{name: "x"})
        assert caught.value.name == name
        texts.append(caught.value.reason)
    assert "use amqps://" in texts[1]
    assert texts[1] == texts[2]


def test_a_receiver_refuses_the_same() -> None:
    with pytest.raises(OptionError, match="url"):
        QueueReceiver("mq", "q", "queue")
    with pytest.raises(OptionError, match="prefetch"):
        QueueReceiver("amqps://mq", "q", "queue", prefetch=0)
    with pytest.raises(OptionError, match="queuePath"):
        QueueReceiver("amqps://mq", "q", "https://x.org/")
    with pytest.raises(OptionError, match="must be a folder"):
        QueueReceiver("amqps://mq", "q", "postgresql://db/mail")


@pytest.mark.parametrize(
    ("url", "options", "login"),
    [
        ("amqps://mq", {}, ("guest", "guest")),
        ("amqps://mq", {"certfile": "/cert"}, None),
        ("amqps://u:p@mq", {"certfile": "/cert"}, ("u", "p")),
        ("amqps://u@mq", {"password": "p"}, ("u", "p")),
    ],
)
def test_the_login(url: str, options: Any, login: tuple[str, str] | None) -> None:
    assert AMQPMailer(url, **options).login == login


def test_without_the_extra_the_error_names_it() -> None:
    script = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Lacking:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name != 'amqp': return PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Lacking\n"
        "from postcommit import AMQPMailer, MissingExtraError\n"
        "try: AMQPMailer('amqps://mq')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = python(script)
    assert "pip install 'postcommit[amqp]'" in done.stdout, done.stderr


def test_a_mailer_that_is_made_loads_all_that_it_needs_when_it_connects() -> None:
    script = (
        "import sys\n"
        "import postcommit, postcommit.interfaces\n"
        "from postcommit import SMTPMailer, AMQPMailer\n"
        "print('amqp' in sys.modules)\n"
    )
    done = python(script)
    assert done.stdout.strip() == "False", done.stderr


def python(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)
