"""The connection is cut after each number of bytes, in the vote and in the finish.

``POSTCOMMIT_POSTGRES_STEP`` is the distance between two cuts in bytes, 61 by default.
"""
from __future__ import annotations

import os

import pytest
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.support.postgres import cluster
from tests.support.postgresplace import PostgresPlace
from tests.support.proxy import LossyProxy
from tests.support.service import eventually
from tests.support.transactions import AFTER
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import begun
from tests.support.transactions import mail

from postcommit import QueuedMailDelivery
from postcommit.errors import PublishError
from postcommit.errors import QueueError


STEP = int(os.environ.get("POSTCOMMIT_POSTGRES_STEP", "61"))

_OPEN = """
select from pg_stat_activity
where state like 'idle in transaction%' and pid <> pg_backend_pid()"""


@pytest.mark.parametrize("way", ["requests", "replies"])
@pytest.mark.parametrize(
    ("count", "partner"), [(1, None), (2, None), (1, BEFORE), (3, AFTER)]
)
def test_a_cut_decides_for_all_of_a_transaction_or_for_nothing(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    way: str,
    count: int,
    partner: str | None,
) -> None:
    url = postgres.url.replace(f":{cluster().port}/", f":{proxy.port}/")
    step = STEP if way == "requests" else max(1, STEP // 5)
    tries = 0
    while proxy.losses == tries:  # until all bytes have passed
        commit_and_cut(postgres, proxy, url, way, tries * step, count, partner)
        tries += 1
    assert proxy.losses > 2


def commit_and_cut(
    postgres: PostgresPlace,
    proxy: LossyProxy,
    url: str,
    way: str,
    size: int,
    count: int,
    partner: str | None,
) -> None:
    """Commit `count` mails, and cut the connection after `size` bytes."""
    decided: list[int] = []
    is_accepted = True
    with begun("explicit") as manager:
        delivery = QueuedMailDelivery(url, transaction_manager=manager)
        if partner:
            finish = lambda: decided.append(size)  # noqa: E731
            manager.get().join(Partner(partner, tpc_finish=finish))
        names = [delivery.send(ANN, BOB, mail(f"{n}@x.org")) for n in range(count)]
        proxy.cut_after(size, way)
        try:
            manager.commit()
        except PublishError as error:
            raise AssertionError("the database is not away") from error
        except QueueError:
            is_accepted = False
            manager.abort()
        proxy.cut_after(None, way)
    eventually(lambda: not postgres.execute(_OPEN).fetchall())
    queued = sorted(seen.message_id for seen in postgres.look().queued)
    assert queued == (names if is_accepted else []), size
    assert is_accepted or not decided
    for table in ("entry", "batch"):
        postgres.execute(f"delete from {{schema}}.{table}")
