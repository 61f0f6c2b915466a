"""The unit that writes metrics, run by the shell as systemd would run it."""
from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from postcommit._maildir.store import Store


DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder like ``/opt/postcommit/bin``."""
    program = tmp_path / "bin" / "postcommit"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom postcommit._cli.main import main\n"
        "sys.exit(main())\n"
    )
    program.chmod(0o755)
    return program


def run_unit(program: Path, folder: Path) -> None:
    """Run the command of the unit, with `folder` in place of all that it names."""
    unit = (DOCS / "postcommit-metrics@.service").read_text()
    [line] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    line = line.replace("%i", "shop").replace("$$", "$")
    line = line.replace("/opt/postcommit/bin/postcommit", str(program))
    line = line.replace("/var/spool/postcommit", str(folder))
    line = line.replace("/var/lib/prometheus/node-exporter", str(folder))
    subprocess.run(shlex.split(line), check=False, stderr=subprocess.DEVNULL)


def test_the_metrics_are_written_at_once(program: Path, tmp_path: Path) -> None:
    Store(str(tmp_path / "shop"))
    run_unit(program, tmp_path)
    written = (tmp_path / "postcommit-shop.prom").read_text()
    assert "postcommit_queue_entries{" in written
    assert not (tmp_path / "postcommit-shop.prom.tmp").exists()


def test_a_queue_that_needs_attention_has_metrics(
    program: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "shop"))
    path = Path(store.path, "new", "1.M1P1Q1.web1")
    path.write_bytes(b"X-Zope-From: \nX-Zope-To: ann@example.org\nSubject: x\n\n")
    os.utime(path, (1, 1))
    run_unit(program, tmp_path)  # the exit status of the command is 1
    written = (tmp_path / "postcommit-shop.prom").read_text()
    attention = re.findall(r"^postcommit_queue_attention\{.*\} (\d+)", written, re.M)
    assert int(attention[0]) > 0


def test_the_old_metrics_stay_if_the_queue_cannot_be_read(
    program: Path, tmp_path: Path
) -> None:
    (tmp_path / "postcommit-shop.prom").write_text("old")
    run_unit(program, tmp_path)  # there is no queue
    assert (tmp_path / "postcommit-shop.prom").read_text() == "old"


def test_the_alerts_name_metrics_that_exist(program: Path, tmp_path: Path) -> None:
    Store(str(tmp_path / "shop"))
    page = (DOCS / "metrics.rst").read_text()
    known = (DOCS / "operating.rst").read_text()
    for name in re.findall(r"postcommit_queue_\w+", page):
        assert f"``{name}``" in known
