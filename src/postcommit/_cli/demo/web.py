"""The page of ``postcommit demo --web``."""
from __future__ import annotations

from postcommit._cli.demo.stage import Scene
from postcommit._cli.web import Page


def show(setting: Scene) -> None:
    """Serve the queue and the mailbox of the demo until Ctrl-C."""
    with Page("127.0.0.1", 0) as page:
        page.serve([setting.queue.name], [setting.mailbox])
