"""The applications of docs/web.rst: each shows the page to the right user only."""
from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from postcommit._maildir.store import Store
from tests.support.queues import fill
from tests.web.conftest import SAME_ORIGIN


PAGE = (Path(__file__).parent.parent.parent / "docs" / "web.rst").read_text()


def block(title: str, language: str) -> str:
    """Return the first block in a section of the page."""
    section = PAGE.partition(f"\n{title}\n---")[2].partition("\n\n\n")[0]
    found = re.search(rf"code-block:: {language}\n\n((?:   .*(?:\n|$)|\n)+)", section)
    assert found is not None
    return textwrap.dedent(found[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the queue of the examples."""
    fill(Store(str(tmp_path / "queue")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pyramid(folder: Path) -> None:
    names: dict[str, Any] = {}
    exec(block("In Pyramid", "python"), names)
    lines = re.findall(r"(mail\.\w+) = (.*)", block("In Pyramid", "ini"))
    settings = {name: value.replace("%(here)s", str(folder)) for name, value in lines}
    app = TestApp(names["main"]({}, **settings))
    host = {"Host": "shop.example.org"}
    for user in ({}, {"REMOTE_USER": "ann"}):
        app.get("/mail", headers=host, extra_environ=user, status=403)
    olga = {"REMOTE_USER": "olga"}
    assert "Teapot" in app.get("/mail/queue/queue", headers=host, extra_environ=olga)
    app.get("/mail", headers={"Host": "x.org"}, extra_environ=olga, status=403)


def test_flask(folder: Path) -> None:
    names: dict[str, Any] = {"__name__": __name__}
    exec(block("In Flask", "python"), names)
    flask_app = names["app"]

    @flask_app.route("/login/<name>")
    def login(name: str) -> str:
        names["session"]["operator"] = name
        return "hello"

    app = TestApp(names["application"])
    assert app.get("/mail/", status=302).headers["Location"].endswith("/login")
    app.get("/login/olga")
    page = app.get("/mail/queue/shop?state=failed")
    assert "Teapot" in page
    assert '<p class="user">olga</p>' in page
    form = page.forms[1]
    form["id"].checked = True
    answer = form.submit("action", value="retry", headers=SAME_ORIGIN)
    assert answer.headers["Location"].startswith("/mail/queue/shop?")
    assert "1 entry retried." in answer.follow()
