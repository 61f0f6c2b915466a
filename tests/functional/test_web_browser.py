"""The page in a real browser, Chromium, as ``postcommit web`` serves it.

The hostile message tries to make requests to a tracker, in each way that HTML has.
"""
from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import transaction
from selenium.common.exceptions import WebDriverException
from tests.functional.chromium import PATIENCE
from tests.functional.chromium import browsing
from tests.functional.chromium import why_not
from tests.support.queues import ENTRY
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import write
from tests.web.test_command import Served
from tests.web.test_command import serving

from postcommit import EntryState
from postcommit import FileMailer
from postcommit import ItemError
from postcommit import MailQueue
from postcommit import QueuedMailDelivery
from postcommit._maildir.store import Store


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

HOSTILE = """\
<html><head>
<meta http-equiv="refresh" content="0; url={url}/refresh">
<base href="{url}/">
<link rel="stylesheet" href="{url}/link.css">
<link rel="prefetch" href="{url}/prefetch">
<link rel="preload" as="image" href="{url}/preload">
<link rel="preconnect" href="{url}">
<link rel="icon" href="{url}/icon">
<link rel="manifest" href="{url}/manifest">
<style>@import url("{url}/import.css"); body {{ background: url({url}/background) }}
@font-face {{ font-family: f; src: url({url}/font) }} p {{ font-family: f }}</style>
<script src="{url}/script.js"></script>
<script>fetch("{url}/fetch"); new Image().src = "{url}/image";
top.location = "{url}/top"; parent.document.body.innerHTML = "gone"</script>
</head><body background="{url}/body" onload="location='{url}/onload'">
<p id="text">Hello Ann</p><p style="background: url({url}/style)">styled</p>
<img src="{url}/img" onerror="fetch('{url}/onerror')"><img srcset="{url}/srcset 1x">
<picture><source srcset="{url}/picture"><img src="{url}/fallback"></picture>
<iframe src="{url}/iframe"></iframe><object data="{url}/object"></object>
<embed src="{url}/embed">
<video src="{url}/video" poster="{url}/poster" autoplay></video>
<audio src="{url}/audio" autoplay></audio><input type="image" src="{url}/input">
<svg><image href="{url}/svg" /><use href="{url}/use#a" /></svg>
<form id="f" action="{url}/form"><input name="a"></form><script>f.submit()</script>
<a id="link" href="{url}/click" ping="{url}/ping">Open your account</a>
<a id="top" href="{url}/target" target="_top">Another</a>
<link
rel=dns-prefetch href={url}><LINK/REL=preconnect/HREF="{url}"/>
<l&#105;nk rel="preconnect" href="{url}"><base target="_top">
<meta http-equiv="x-dns-prefetch-control" content="on">
<meta http-equiv="Content-Security-Policy" content="default-src *">
<style>@import "data:text/css,@import '{url}/nested.css'"; @import url({url}/layer)
layer(x) supports(color: red); li {{ list-style-image: image-set("{url}/set" 1x) }}
input[name=a] {{ cursor: url({url}/cursor), auto; mask: url({url}/mask#m) }}
@namespace url({url}/namespace); p::before {{ content: url("{url}/content") }}
div {{ filter: url("{url}/filter#f"); border-image: url({url}/border) 1 }}</style>
<ul><li>one</li></ul><div style="background: \75rl({url}/escaped)">div</div>
<iframe srcdoc="<img src='{url}/srcdoc'><link rel=preconnect href='{url}'>"></iframe>
<img src="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'%3E%3Cimage
href='{url}/inner'/%3E%3C/svg%3E"><img src="{url}/lazy" loading="eager">
<svg><style>@import url({url}/svgstyle);</style><feImage href="{url}/feimage" />
<filter id="f"><feImage xlink:href="{url}/xlink" /></filter><script href="{url}/s" />
<foreignObject><iframe src="{url}/foreign"></iframe></foreignObject>
<animate attributeName="href" to="{url}/animate" /><a xlink:href="{url}/a">x</a></svg>
<math href="{url}/math"><mglyph src="{url}/mglyph" /><maction actiontype="statusline"
xlink:href="{url}/maction">m</maction></math><table background="{url}/table"></table>
<video><source src="{url}/source"><track default kind="captions" src="{url}/track">
</video><noscript><img src="{url}/noscript"><link rel="preconnect" href="{url}">
</noscript><template shadowrootmode="open"><img src="{url}/shadow"></template>
<details open ontoggle="fetch('{url}/toggle')">d</details>
<form action="{url}/post" method="post" target="_top"><button formaction="{url}/fa"
autofocus>Win</button></form><map name="m"><area href="{url}/area"></map>
<a href="data:text/html,<script>location='{url}/data'</script>">data</a>
<a href="javascript:fetch('{url}/js')" autofocus>js</a><frameset><frame src="{url}/fs">
</frameset><portal src="{url}/portal"></portal><applet code="{url}/applet"></applet>
<object type="text/html" data="data:text/html,<img src='{url}/od'>"></object>
<script type="speculationrules">{{"prefetch": [{{"urls": ["{url}/spec"]}}]}}</script>
</body></html>
"""


class Tracker:
    """Counts connections, also those without a request."""

    def __init__(self) -> None:
        self.connections = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Tracker:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    with Tracker() as tracker:
        yield tracker


@pytest.fixture
def queue(tmp_path: Path, tracker: Tracker) -> MailQueue:
    """A queue with a dead letter, a deferred, a plain and a hostile entry."""
    store = Store(str(tmp_path / "queue"))
    bury(store)
    defer(store, due=5000)
    long = b"Kettle" + b"x" * 300  # wider than any window
    kettle = ENTRY.replace(b"Teapot", long).replace(b"a@x.org", b"kettle@x.org")
    write(store, "new/1700000000.M1P1Q1.web", kettle)
    delivery = QueuedMailDelivery(store.path)
    with transaction.manager:
        delivery.send("eve@x.org", "victim@x.org", hostile(tracker.url))
    return MailQueue(store.path)


def hostile(url: str) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "Hostile <script>alert(1)</script>"
    message.set_content("Hello Ann\n")
    message.add_alternative(HOSTILE.format(url=url), subtype="html")
    return message


@pytest.fixture
def page(queue: MailQueue, tmp_path: Path, tracker: Tracker) -> Iterator[Served]:
    folder = tmp_path / "mails"
    mailer = FileMailer(str(folder))
    mailer.send("a@x.org", ["b@x.org"], "Subject: Plain mail\n\nText of it.\n")
    mailer.send("eve@x.org", ["victim@x.org"], hostile(tracker.url))
    argv = ["web", queue.queuePath, "--mailbox", str(folder)]
    with serving(*argv, "--listen", "127.0.0.1:0") as served:
        yield served


def wait_until(condition: Any) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for(driver: Any, text: str) -> None:
    """Wait until the page has `text`. A click does not wait for the next page."""

    def is_there() -> bool:
        try:
            return text in driver.find_element("css selector", "main").text
        except WebDriverException:
            return False  # this page is gone, and the next is not there

    wait_until(is_there)


def press(driver: Any, value: str) -> None:
    driver.find_element("css selector", f'button[value="{value}"]').click()


def choose(driver: Any, id: str) -> None:
    driver.find_element("css selector", f'input[value="{id}"]').click()


def follow(driver: Any, text: str) -> None:
    driver.find_element("link text", text).click()


def fits(driver: Any) -> bool:
    """Return whether nothing is wider than the window."""
    return bool(
        driver.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth"
        )
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_looks_and_acts(page: Served, queue: MailQueue, width: int) -> None:
    [dead] = queue.list(EntryState.FAILED)
    [deferred] = queue.list(EntryState.DEFERRED)
    with browsing(width) as driver:
        driver.get(page.url)
        assert "token" not in driver.current_url
        wait_for(driver, "Needs attention")
        assert fits(driver)
        follow(driver, "queue")
        wait_for(driver, "More filters")
        assert fits(driver)
        driver.find_element("id", "search").send_keys("kettle@x.org\n")
        wait_until(lambda: "search=kettle" in driver.current_url)
        rows = driver.find_elements("css selector", "tbody tr")
        assert len(rows) == 1
        assert rows[0].text.startswith("Kettle")

        driver.get(f"{page.url.partition('?')[0]}queue/queue/{dead.id}")
        wait_for(driver, "550 5.1.1 No such user")
        assert fits(driver)
        press(driver, "retry")
        wait_for(driver, "1 entry retried.")
        assert queue.show(dead.id).state is EntryState.WAITING

        driver.get(f"{page.url.partition('?')[0]}queue/queue?state=deferred")
        choose(driver, deferred.id)
        press(driver, "delete")
        wait_for(driver, "This cannot be undone")
        assert queue.show(deferred.id)
        press(driver, "delete")
        wait_for(driver, "1 entry deleted.")
        assert list(queue.list(EntryState.DEFERRED)) == []

        choose(driver, dead.id)
        press(driver, "cancel")
        wait_for(driver, "Mail that still waits is removed and not sent.")
        press(driver, "cancel")
        wait_for(driver, "1 entry cancelled.")
        with pytest.raises(ItemError):
            queue.show(dead.id)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_hostile_message_reaches_nobody(
    page: Served, queue: MailQueue, tracker: Tracker, width: int
) -> None:
    [entry] = queue.list(recipient="victim@x.org")
    with browsing(width) as driver:
        driver.get(page.url)
        driver.get(f"{page.url.partition('?')[0]}queue/queue/{entry.id}")
        look_at_html(driver, tracker)
        follow(driver, "HTML, phone")
        wait_until(lambda: "view=phone" in driver.current_url)
        look_at_html(driver, tracker)
        frame = driver.find_element("tag name", "iframe")
        assert frame.size["width"] <= 390
        # Also without the frame, by the response alone.
        driver.get(frame.get_attribute("src"))
        assert "Hello Ann" in driver.find_element("tag name", "body").text
        time.sleep(1)
    assert tracker.connections == 0


def look_at_html(driver: Any, tracker: Tracker) -> None:
    """Look into the frame, and click on its links."""
    address = driver.current_url
    wait_for(driver, "Open your account")
    wait_for(driver, f"{tracker.url}/click")
    assert fits(driver)
    for link in ("top", "link"):  # neither leads anywhere
        frame = driver.find_element("tag name", "iframe")
        driver.execute_script("arguments[0].scrollIntoView()", frame)
        driver.switch_to.frame(frame)
        assert driver.find_element("id", "text").text == "Hello Ann"
        driver.find_element("id", link).click()
        driver.switch_to.default_content()
    time.sleep(1)  # for requests that must not come; nothing else would show them
    assert driver.current_url == address
    wait_for(driver, "Message id")
    assert tracker.connections == 0


def test_the_tracker_hears_of_an_unprotected_page(tracker: Tracker) -> None:
    """The message does make requests, if nothing prevents them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            text = HOSTILE.replace("refresh", "nothing").replace("onload", "data-x")
            text = text.replace("f.submit()", "").replace("top.location", "x")
            self.wfile.write(text.format(url=tracker.url).encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with browsing() as driver:
                driver.get(f"http://127.0.0.1:{server.server_port}/")
                wait_until(lambda: tracker.connections > 5)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_mailbox(page: Served, tracker: Tracker, width: int) -> None:
    with browsing(width, dark=True) as driver:
        driver.get(page.url)
        follow(driver, "mails")
        wait_for(driver, "Plain mail")
        assert fits(driver)
        rows = driver.find_elements("css selector", "tbody th")
        assert [row.text for row in rows] == [
            "Hostile <script>alert(1)</script>",
            "Plain mail",
        ]
        follow(driver, "Plain mail")
        wait_for(driver, "Text of it.")
        follow(driver, "Source")
        wait_for(driver, "Delivered-To: b@x.org")
        follow(driver, "mails")
        wait_for(driver, "Hostile")
        follow(driver, "Hostile <script>alert(1)</script>")
        wait_for(driver, "Links")
        assert driver.find_element("tag name", "iframe").size["width"] <= width
        ground = driver.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        assert ground == "rgb(20, 24, 31)"
        time.sleep(1)
    assert tracker.connections == 0


def test_another_page_cannot_frame_or_use_it(page: Served, queue: MailQueue) -> None:
    """A page of another site, in the browser of somebody who is logged in."""
    [dead] = queue.list(EntryState.FAILED)
    target = page.url.partition("?")[0]
    form = f"""<form method="post" action="{target}queue/queue">
    <input name="action" value="retry"><input name="id" value="{dead.id}">
    <button>Win</button></form><iframe src="{target}"></iframe>"""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(form.encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with browsing() as driver:
                driver.get(page.url)
                driver.get(f"http://localhost:{server.server_port}/")
                driver.switch_to.frame(driver.find_element("tag name", "iframe"))
                assert "queue" not in driver.page_source.partition("<body")[2][:2000]
                driver.switch_to.default_content()
                driver.find_element("tag name", "button").click()
                wait_until(lambda: driver.title.startswith("403"))
        finally:
            server.shutdown()
            thread.join()
    assert queue.show(dead.id).state is EntryState.FAILED
