"""A Zope site with a mail host, as a process, and its pages over HTTP."""
from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.service import PATIENCE
from tests.support.service import environment


_LINE = '<include package="postcommit.mailhost" />'

_MORE = """
  <include package="Products.Five" />
  {line}
</configure>
"""

# Makes the mail hosts and the pages. A page sends with one of the mail hosts.
_SETUP = """
import sys
import transaction
from OFS.DTMLMethod import addDTMLMethod
from Products.MailHost.MailHost import MailHost

port, queue = int(sys.argv[-2]), sys.argv[-1]
app._setObject("direct", MailHost("direct", "", "127.0.0.1", port))
app._setObject("queued", MailHost(
    "queued", "", "127.0.0.1", port, smtp_queue=True, smtp_queue_directory=queue
))
for host in ("direct", "queued"):
    addDTMLMethod(app, f"send_{host}", file=f'''
<dtml-in expr="_.range(_.int(REQUEST.get('mails', 1)))">
<dtml-call expr="{host}.send('Subject: x\\\\n\\\\nx', _.list(to),
    'site@example.org', immediate=REQUEST.get('immediate') and 1 or 0)">
</dtml-in>
<dtml-if fail><dtml-raise type="ValueError">no</dtml-raise></dtml-if>sent''')
transaction.commit()
"""


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


class Site:
    """A site in `folder`, made by mkwsgiinstance and served by waitress.

    `with_line` says whether its ZCML includes ours. Its mail hosts send to `relay`.
    """

    def __init__(self, folder: Path, relay: int, *, with_line: bool) -> None:
        self.folder = folder
        self.queue = folder / "queue"
        self.port = free_port()
        self._process: Any = None
        self._environment = environment(PYTHONWARNINGS="ignore")
        self._run("mkwsgiinstance", "-d", folder, "-u", "admin:secret")
        settings = folder / "etc" / "site.zcml"
        line = _LINE if with_line else ""
        text = settings.read_text().replace("</configure>", _MORE.format(line=line))
        settings.write_text(text)
        server = folder / "etc" / "zope.ini"
        text = server.read_text().replace("port = 8080", f"port = {self.port}")
        server.write_text(re.sub(r"(?m)^    translogger\n", "", text))
        script = folder / "setup.py"
        script.write_text(_SETUP)
        configuration = folder / "etc" / "zope.conf"
        self._run("zconsole", "run", configuration, script, relay, self.queue)

    def _run(self, name: str, *arguments: object) -> None:
        subprocess.run(
            [_program(name), *map(str, arguments)],
            env=self._environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def __enter__(self) -> Site:
        with open(self.folder / "log.txt", "w") as log:
            self._process = subprocess.Popen(
                [_program("runwsgi"), str(self.folder / "etc" / "zope.ini")],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.get("/")
            except OSError:
                assert time.monotonic() < until, self.log
                assert self._process.poll() is None, self.log
                time.sleep(0.1)  # it starts
            else:
                return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the text of a page."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        credentials = base64.b64encode(b"admin:secret").decode()
        request.add_header("Authorization", f"Basic {credentials}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def send(self, host: str, *to: str, **options: Any) -> int:
        """Send a mail through a page. Returns the status of the page.

        The options are `immediate`, `fail` after that, and the number of `mails`.
        """
        fields = [("to:list", address) for address in to] + list(options.items())
        return self.get(f"/send_{host}?{urllib.parse.urlencode(fields)}")[0]

    def entries(self, folder: str) -> list[str]:
        """Return the names of the files in a folder of the queue."""
        return sorted(os.listdir(self.queue / folder))
