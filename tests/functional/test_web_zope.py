"""The page beside a real Zope, as docs/web.rst mounts it."""
from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.support.queues import fill
from tests.web.test_examples_of_the_page import block

from postcommit._maildir.store import Store


pytest.importorskip("Products.MailHost")

from tests.compat.site import Site


class SiteWithPage(Site):
    """A site whose ``zope.ini`` has the composite of the page."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 1, with_line=False)
        path = self._environment.get("PYTHONPATH")
        self._environment["PYTHONPATH"] = f"{path}:{folder}" if path else str(folder)
        (folder / "mailpage.py").write_text(block("In Zope", "python"))
        server = folder / "etc" / "zope.ini"
        text = server.read_text()
        start = text.index("[pipeline:main]")
        end = text.index("\n[", start)
        composite = block("In Zope", "ini")
        server.write_text(text[:start] + composite + text[end:])


@pytest.fixture
def site(tmp_path: Path) -> SiteWithPage:
    made = SiteWithPage(tmp_path / "zope")
    fill(Store(str(made.queue)))
    return made


def test_the_page_is_beside_the_site(site: SiteWithPage) -> None:
    with site:
        status, text = site.get("/mail/queue/queue")
        assert (status, text.count("Teapot")) == (200, 4), site.log
        assert '<p class="user">admin</p>' in text
        assert site.get("/mail")[0] == 200
        assert site.get("/mailing")[0] == 404
        assert "Zope" in site.get("/")[1]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{site.port}/mail/", timeout=30)
        with caught.value:
            assert caught.value.code == 401, site.log
