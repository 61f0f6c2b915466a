"""A queue, a mailbox, and the page of both as a browser on this machine sees it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from webtest import TestApp

from postcommit._maildir.store import Store
from postcommit.web import make_app


# What a browser sends with a form of the page.
SAME_ORIGIN = {"Origin": "http://localhost:80", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "queue"))


@pytest.fixture
def mailbox(tmp_path: Path) -> Path:
    return tmp_path / "mails"


@pytest.fixture
def app(store: Store, mailbox: Path) -> Any:
    return TestApp(
        make_app(store.path, authorize=lambda request: "ann", mailboxes=str(mailbox))
    )


class Page:
    """Loads pages and sends their forms, as a browser does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def act(
        self, page: Any, action: str, *ids: str, status: int | None = None
    ) -> Any:
        """Press the button `action` of `page`, with these entries chosen."""
        form = next(form for form in page.forms.values() if "token" in form.fields)
        for box in form.fields.get("id", ()):
            if hasattr(box, "checked"):
                box.checked = box._value in ids
        return form.submit("action", value=action, headers=SAME_ORIGIN, status=status)


@pytest.fixture
def browser(app: Any) -> Page:
    return Page(app)
