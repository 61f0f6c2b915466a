"""Fixtures with real servers."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

import pytest
from tests.functional.postfix import Postfix
from tests.functional.postfix import starting
from tests.functional.postfix import why_not
from tests.functional.rabbitmq import Node
from tests.functional.rabbitmq import connected
from tests.functional.rabbitmq import one_node
from tests.functional.rabbitmq import why_no_broker
from tests.support.postgres import cluster
from tests.support.postgres import why_not as no_postgres
from tests.support.postgresplace import PostgresPlace
from tests.support.proxy import LossyProxy
from tests.support.smtpd import ScriptedRelay
from tests.support.smtpd import well_treated

from postcommit import QueueReceiver


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A scripted relay, which must not see a breach of the protocol."""
    with well_treated() as start:
        yield start()


@pytest.fixture
def start_postfix() -> Iterator[Callable[..., Postfix]]:
    """A function that starts a Postfix, which is stopped after the test."""
    if reason := why_not():
        pytest.skip(reason)
    with starting() as start:
        yield start


@pytest.fixture
def postfix(start_postfix: Callable[..., Postfix]) -> Postfix:
    """A Postfix with the users ann and bob at example.org."""
    return start_postfix()


@pytest.fixture
def postgres() -> Iterator[PostgresPlace]:
    """A new queue in a PostgreSQL that the tests of a process share."""
    if reason := no_postgres():
        pytest.skip(reason)
    place = PostgresPlace()
    yield place
    place.end()


@pytest.fixture
def proxy() -> Iterator[LossyProxy]:
    """A proxy before the server of `postgres`, which loses what a test wants."""
    with LossyProxy(cluster().port) as made:
        yield made


@pytest.fixture
def url(postgres: PostgresPlace, proxy: LossyProxy) -> str:
    """The URL of the queue of `postgres` behind the proxy."""
    return postgres.url.replace(f":{cluster().port}/", f":{proxy.port}/")


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A RabbitMQ for all tests of a session. A test that stops it starts it again."""
    if reason := why_no_broker():
        pytest.skip(reason)
    with one_node() as node:
        yield node


@pytest.fixture
def queue(node: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a quorum queue that is there, and empty."""
    name = f"q-{request.node.name}"
    QueueReceiver(node.url(), name, "unused").declare()
    yield name
    with connected(node) as channel:
        channel.queue_delete(name)
