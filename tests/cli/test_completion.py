"""``postcommit completion``: what each shell offers, asked of the shell itself."""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from postcommit._cli import main as cli
from postcommit._cli.completion import SHELLS
from postcommit._cli.main import main
from tests.support.terminal import Session


def completion(shell: str, capsys: Any) -> str:
    assert main(["completion", shell]) == 0
    return str(capsys.readouterr().out)


def completed(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of `words`."""
    code = (
        f"source {shlex.quote(str(script))}\n"
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}\n"
        '_shtab_postcommit; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.split()


def test_bash_completes(tmp_path: Path, capsys: Any) -> None:
    script = tmp_path / "completion"
    script.write_text(completion("bash", capsys))
    (tmp_path / "queue").mkdir()
    (tmp_path / "shop.ini").write_text("")
    every = [command.name for command in cli.COMMANDS]
    assert completed(script, "postcommit", "") == every
    assert completed(script, "postcommit", "fl") == ["flush"]
    assert "--port" in completed(script, "postcommit", "run", "--po")
    assert "--json" not in completed(script, "postcommit", "run", "--")
    assert completed(script, "postcommit", "run", "") == ["queue"]
    assert completed(script, "postcommit", "run", "--tls", "im") == ["implicit"]
    for option in ("--config", "--cafile", "--certfile", "--keyfile"):
        assert completed(script, "postcommit", "run", option, "sh") == ["shop.ini"]
    assert completed(script, "postcommit", "run", "--port", "") == []
    assert completed(script, "postcommit", "completion", "z") == ["zsh"]
    assert "--password" not in completed(script, "postcommit", "run", "--pass")


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_is_told_of_each_command_and_option(shell: str, capsys: Any) -> None:
    script = completion(shell, capsys)
    for command in cli.COMMANDS:
        assert command.name in script
    for option in ("messages-per-connection", "password-file", "warn-age"):
        assert option in script
    assert "implicit" in script


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a queue and a file in it, and nobody's configuration.

    The command is there as well: for one that is not, fish loads nothing.
    """
    (tmp_path / "queue").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "postcommit").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "postcommit").chmod(0o755)
    (tmp_path / "shop.ini").write_text("")
    return tmp_path


def at_home(home: Path) -> dict[str, str]:
    path = f"{home}/bin:{os.environ['PATH']}"
    return {"HOME": str(home), "PATH": path, "TERM": "xterm"}


# What is typed, and what becomes of it with a tab behind it.
TYPED = [
    ("sta", "status"),
    ("run --max-b", "run --max-backoff"),
    ("run --tls im", "run --tls implicit"),
    ("run --config sh", "run --config shop.ini"),
    ("status qu", "status queue/"),
    ("status sh", "status sh"),
    ("run --port qu", "run --port qu"),
    ("completion z", "completion zsh"),
]


def test_zsh_completes_what_is_typed(home: Path, capsys: Any) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("Debian's package zsh is not installed")
    (home / ".zfunc").mkdir()
    (home / ".zfunc" / "_postcommit").write_text(completion("zsh", capsys))
    (home / ".zshrc").write_text(
        "fpath+=~/.zfunc; autoload -U compinit; compinit -u -D\n"
        "PS1='ready> '; unsetopt beep auto_remove_slash\n"
        "postcommit() { print -r -- \"typed: $*.\" }\n"
    )
    with Session([zsh, "-d", "-i"], home, at_home(home)) as session:
        for typed, became in TYPED:
            session.wait_for("ready> ")
            session.type(f"postcommit {typed}\t\n")
            session.wait_for("\r\ntyped: ")
            assert session.wait_for(".\r\n").rstrip() == became


def test_fish_offers_what_can_be_typed(home: Path, capsys: Any) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("Debian's package fish is not installed")
    folder = home / ".config" / "fish" / "completions"
    folder.mkdir(parents=True)
    (folder / "postcommit.fish").write_text(completion("fish", capsys))
    lines = "; echo =; ".join(f"complete -C 'postcommit {typed}'" for typed, _ in TYPED)
    done = subprocess.run(
        [fish, "-c", f"{lines}; echo =; complete -C 'postcommit '"],
        cwd=home,
        env=at_home(home),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *offered, first = done.stdout.split("=\n")
    for (typed, became), told in zip(TYPED, offered, strict=True):
        words = [line.split("\t")[0] for line in told.splitlines()]
        assert words == ([] if typed == became else [became.split()[-1]])
    told_of = {line.split("\t")[0]: line.split("\t")[1] for line in first.splitlines()}
    assert sorted(told_of) == sorted(command.name for command in cli.COMMANDS)
    assert told_of["check"] == "find problems in a queue and say how to fix them"


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    told = "shtab is missing; install it: pip install 'postcommit[completion]'"
    assert capsys.readouterr() == ("", f"postcommit: {told}\n")
