"""Our interfaces by the name of those of zope.sendmail, as an import hook has them."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.component import getUtility
from zope.component.testing import setUp as set_up_components
from zope.component.testing import tearDown as tear_down_components
from zope.configuration.xmlconfig import string as configure

from postcommit import interfaces


SITE = """\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:mail="http://namespaces.zope.org/mail">
  <include package="postcommit" />
  <mail:directDelivery name="direct" mailer="smtp" />
  <mail:queuedDelivery
      name="queued" mailer="smtp" queuePath="{queue}" processorThread="false" />
</configure>
"""


@pytest.fixture(autouse=True)
def components() -> Iterator[None]:
    set_up_components()
    yield
    tear_down_components()


def test_directives_register_each_utility_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "zope.sendmail.interfaces", interfaces)
    # It was a conflict of two directives.
    configure(SITE.format(queue=tmp_path / "queue"))
    for name in ("direct", "queued"):
        assert getUtility(interfaces.IMailDelivery, name)
    assert getUtility(interfaces.IMailer, "smtp")


def test_each_older_interface_is_there_by_its_name() -> None:
    older = pytest.importorskip("zope.sendmail.interfaces")
    ours = {name for name in vars(interfaces) if name.startswith("I")}
    names = {
        name
        for name, found in vars(older).items()
        if getattr(found, "__module__", "") == older.__name__ and name.startswith("I")
    }
    assert names - ours == set()
