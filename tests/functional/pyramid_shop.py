"""A Pyramid application: a shop that keeps its orders in an SQL database.

With pyramid_tm, pyramid_retry and zope.sqlalchemy, as they are meant to be used.
"""
from __future__ import annotations

import configparser
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import sqlalchemy
import transaction
import waitress
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.threadlocal import get_current_registry
from pyramid.threadlocal import get_current_request
from sqlalchemy import orm

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailSentEvent
from postcommit.pyramid import get_mail_delivery


SHOP, OWNER = "shop@example.org", "owner@example.org"


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    item: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    customer: orm.Mapped[str]
    pieces: orm.Mapped[int] = orm.mapped_column(default=1)
    version: orm.Mapped[int] = orm.mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Sent(Base):
    """What a subscriber has noted."""

    __tablename__ = "sent"

    message_id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    recipient: orm.Mapped[str]


def main(global_config: object, **settings: Any) -> Any:
    settings = {
        "tm.manager_hook": "pyramid_tm.explicit_manager",
        "retry.attempts": 3,
        **settings,
    }
    with Configurator(settings=settings) as config:
        config.include("pyramid_retry")
        config.include("pyramid_tm")
        config.include("postcommit.pyramid")
        config.include(database)
        config.add_subscriber(remember, IMailSentEvent)
        if "shop.bulk_queue" in settings:
            bulk(config, settings)
        views = (order, order_and_fail, order_and_abort, order_again, worker, news)
        for view in views:
            config.add_route(view.__name__, f"/{view.__name__}")
            config.add_view(view, route_name=view.__name__, renderer="string")
        return config.make_wsgi_app()


def database(config: Configurator) -> None:
    engine = sqlalchemy.create_engine(config.registry.settings["sqlalchemy.url"])
    Base.metadata.create_all(engine)
    # For servers that fork now: an open connection is nothing to share.
    engine.dispose()
    config.registry["engine"] = engine
    config.add_request_method(
        lambda request: session_of(engine, request.tm), "dbsession", reify=True
    )


def session_of(engine: sqlalchemy.Engine, manager: Any) -> orm.Session:
    session = orm.Session(engine)
    zope.sqlalchemy.register(session, transaction_manager=manager)
    return session


def bulk(config: Configurator, settings: dict[str, Any]) -> None:
    """Add a queue, a mailer and a processor for newsletters."""
    queue = settings["shop.bulk_queue"]
    mailer = SMTPMailer(settings["mail.host"], int(settings["mail.port"]))
    config.add_mailer(mailer, "bulk")
    config.add_mail_delivery(QueuedMailDelivery(queue), "bulk")
    config.add_mail_processor(QueueProcessor(queue, mailer), "bulk")


# Views


def book(request: Request) -> str:
    item, customer = request.params["item"], request.params["customer"]
    request.dbsession.add(Order(item=item, customer=customer))
    return send(request.mail_delivery, customer, f"Your {item}")


def send(delivery: Any, to: str, subject: str) -> str:
    message_id: str = delivery.send(SHOP, to, f"Subject: {subject}\n\nThank you.\n")
    return message_id


def order(request: Request) -> str:
    return book(request)


def order_and_fail(request: Request) -> Response:
    book(request)
    raise RuntimeError("the view fails")


def order_and_abort(request: Request) -> str:
    request.tm.doom()
    return book(request)


def order_again(request: Request) -> str:
    """Somebody else has changed the order since we have read it, the first time."""
    item = request.params["item"]
    found = request.dbsession.get(Order, item)
    found.pieces += 1
    send(request.mail_delivery, found.customer, f"{found.pieces} of your {item}")
    if request.environ["retry.attempt"] == 0:
        with request.registry["engine"].begin() as connection:
            connection.execute(
                sqlalchemy.update(Order).values(version=Order.version + 1, pieces=5)
            )
    request.dbsession.flush()
    return str(request.environ["retry.attempt"])


def news(request: Request) -> str:
    delivery = get_mail_delivery(request, "bulk")
    return send(delivery, request.params["customer"], "News")


def worker(request: Request) -> str:
    return str(os.getpid())


# Events


def remember(event: IMailSentEvent) -> None:
    """Note what was sent; for each mail to a customer send one to the owner.

    In a request, or in a thread of the processor.
    """
    request = get_current_request()
    registry = get_current_registry()
    if request is None:
        session = session_of(registry["engine"], transaction.manager)
        delivery = registry.getUtility(IMailDelivery)
    else:
        session, delivery = request.dbsession, request.mail_delivery
    for recipient in event.recipients:
        session.add(Sent(message_id=event.messageId, recipient=recipient))
        if recipient != OWNER:
            send(delivery, OWNER, f"Mail to {recipient}")


# Servers


def serve(settings: dict[str, Any]) -> None:
    """Serve by waitress until SIGTERM; print the port."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    _serve(main({}, **settings))


def serve_folder(folder: str) -> None:
    """Serve ``shop.py`` with the settings of ``shop.ini``; print the port."""
    names: dict[str, Any] = {}
    exec((Path(folder) / "shop.py").read_text(), names)
    parser = configparser.ConfigParser({"here": folder})
    parser.read(Path(folder) / "shop.ini")
    _serve(names["main"]({"here": folder}, **dict(parser["app:main"])))


def _serve(app: Any) -> None:
    server: Any = waitress.create_server(app, host="127.0.0.1", port=0)
    print(server.effective_port, flush=True)
    server.run()


def from_environment() -> Any:
    """Return the application that the environment describes, for gunicorn."""
    return main({}, **json.loads(os.environ["POSTCOMMIT_SHOP"]))
