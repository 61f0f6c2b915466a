"""``postcommit completion``: prints a completion script for a shell."""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from postcommit.errors import MissingExtraError


SHELLS = ("bash", "zsh", "fish")


# Options that are the path of a file.
_FILES = ("cafile", "certfile", "keyfile")


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "bash: source <(postcommit completion bash)"
    parser.add_argument("shell", choices=SHELLS, help=text)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that completes the command of `parser` in `shell`.

    Raises `MissingExtraError`.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise MissingExtraError("completion", "shtab") from error
    # Where no folder matches, zsh's own _files would offer files.
    folders = {**shtab.DIRECTORY, "zsh": "_path_files -/"}
    for action in _actions(parser):
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if metavar == "QUEUE":
            action.complete = folders
        elif metavar == "FILE" or action.dest in _FILES:
            action.complete = shtab.FILE
        elif "|" in metavar:
            action.choices = metavar.split("|")
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the arguments of the parser, and of the parsers of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
