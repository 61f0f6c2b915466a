"""The command ``postcommit``.

To add a sub-command, write two functions in a module of `postcommit._cli`, and a
line in `COMMANDS`. The module is imported when the command runs. So a command does not
wait for the modules of other commands, or fail because one of these is missing.
"""
from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any
from typing import NoReturn

from postcommit._log import indented
from postcommit._log import one_line
from postcommit._log import printable
from postcommit.errors import PostcommitError
from postcommit.errors import without_userinfo


Options = argparse.Namespace

_SHOWS_THE_WAY = """\
Begin with 'postcommit status QUEUE': it shows what needs attention, and the
command for it. 'postcommit COMMAND --help' explains one command.

exit status: 0 done; 1 something is left to do, and was reported; 2 it could not
be done, and one line on stderr says why; 130 interrupted
"""

# Characters before the summary of a command: room for the longest name.
_BEFORE_SUMMARY = 4 + len("test-relay") + 2

# Words that begin with a dash and are not options: standard input, and a number.
_NO_OPTION = re.compile(r"-(\d.*)?")

# Advice for an error of the system without advice of its own.
_HINTS = {
    errno.ENOENT: "is the path right?",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
}


# A signal that arrives while the service starts waits until it can be handled.
_SIGNALS_OF_SERVICE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """Do nothing, because the command takes no arguments."""


@dataclass(frozen=True)
class Subcommand:
    """A sub-command.

    `run` does the work, and returns the exit status. `arguments` adds the arguments to
    the parser.
    """

    name: str
    summary: str
    run: Callable[[Options], int]
    arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments


def _command(name: str, summary: str, module: str = "") -> Subcommand:
    """Return the command that a module of `postcommit._cli` implements.

    Without `module`, this is the module called `name`, with the functions ``arguments``
    and ``run``. Otherwise it is `module`, with ``NAME_arguments`` and ``run_NAME``.
    """
    word = name.replace("-", "_")
    path = f"postcommit._cli.{module or word}"

    def run(options: Options) -> int:
        function = f"run_{word}" if module else "run"
        status: int = getattr(import_module(path), function)(options)
        return status

    def arguments(parser: argparse.ArgumentParser) -> None:
        function = f"{word}_arguments" if module else "arguments"
        getattr(import_module(path), function)(parser)

    return Subcommand(name, summary, run, arguments)


def _demo(options: Options) -> int:
    from postcommit._cli.demo.story import tell

    if not options.web:
        return 0 if tell(sys.stdout) else 1
    from postcommit._cli.demo.web import show

    return 0 if tell(sys.stdout, show=show) else 1


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    text = "leave a page open on the queue and the mailbox of the demo"
    parser.add_argument("--web", action="store_true", help=text)


def _completion(options: Options) -> int:
    from postcommit._cli.completion import script

    print(script(_parser(), options.shell))
    return 0


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    import_module("postcommit._cli.completion").arguments(parser)


COMMANDS = (
    Subcommand(
        "demo",
        "run a small shop that sends mail (takes a few seconds)",
        _demo,
        _demo_arguments,
    ),
    _command("run", "send queued mail until a signal arrives: the service"),
    _command("receive", "receive mail from a RabbitMQ broker until a signal arrives"),
    _command("flush", "try every due entry once, then report what is left"),
    _command(
        "test-relay", "check connection, TLS and login; optionally send a test mail"
    ),
    _command("status", "show the state of a queue and what needs attention", "looking"),
    _command("list", "list entries with age, next attempt and last reply", "looking"),
    _command("show", "show everything about one entry", "looking"),
    _command("retry", "retry deferred entries or dead letters now", "mending"),
    _command("delete", "delete entries permanently", "mending"),
    _command("hold", "keep entries from being tried until 'release'", "mending"),
    _command("release", "let held entries be tried again", "mending"),
    _command("pause", "stop sending from a queue until 'resume'", "mending"),
    _command("resume", "send again from a queue that was paused", "mending"),
    _command("recover", "send or drop entries that a crash left in doubt", "mending"),
    _command("check", "find problems in a queue and say how to fix them", "looking"),
    _command("move", "move a queue between a folder and a database"),
    _command("migrate", "create or upgrade the tables of a queue in PostgreSQL"),
    _command("web", "serve a page for queues and mailboxes on this machine"),
    Subcommand(
        "completion",
        "print a completion script for bash, zsh or fish",
        _completion,
        _completion_arguments,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status.

    ======  ===================================================================
    status  meaning
    ======  ===================================================================
    0       done
    1       something is left to do, and was printed
    2       it could not begin or go on, and one line on stderr says why
    130     interrupted
    ======  ===================================================================
    """
    words = sys.argv[1:] if argv is None else argv
    if argv is None and (
        next((w for w in words if w[:1] != "-"), "") in ("run", "receive")
    ):
        # Before anything else: a service must not be killed while it starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_SERVICE)
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A mail may have characters that are not in the encoding of the terminal.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser(words).parse_args(words)
    try:
        return _run(options)
    except BrokenPipeError:
        # The reader of our output has gone. Python would flush to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("postcommit: interrupted", file=sys.stderr)
        return 130


def _open_closed_streams() -> None:
    """Open each standard stream that is closed, so that it can be read or written.

    Otherwise a file of the queue would also get the number of a standard stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode))


def _run(options: Options) -> int:
    from postcommit._cli.owner import restored

    try:
        with restored():
            status: int = options.run(options)
    except BrokenPipeError:
        raise
    except Exception as error:
        if options.debug:
            print(indented(traceback.format_exc()).strip(), file=sys.stderr)
        else:
            print(f"postcommit: {_said(error)}", file=sys.stderr)
        return 2
    return status


def _said(error: Exception) -> str:
    """Return the text for `error`, in one line."""
    said = one_line(str(error))
    # An error without a file concerns our own output.
    if isinstance(error, OSError) and error.filename:
        hint = _hint(error)
        return f"{said}; {hint}" if hint else said
    if isinstance(error, PostcommitError | OSError):
        return said
    return f"{type(error).__name__}: {said}; --debug shows where"


def _hint(error: OSError) -> str:
    """Say what to do about an error with a file, or nothing."""
    if error.errno in (errno.EACCES, errno.EPERM):
        from postcommit._cli.owner import advice

        return advice(str(error.filename))
    return _HINTS.get(error.errno or 0, "")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Prints name and summary of each command in one line."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=_BEFORE_SUMMARY, **options)
        # argparse forgets the indentation of the commands.
        self._action_max_length = _BEFORE_SUMMARY - 2


class _Parser(argparse.ArgumentParser):
    """Prints in one line what is wrong, and how to get help."""

    def error(self, message: str) -> NoReturn:
        said = printable(_without_values(message))
        self.exit(2, f"postcommit: {said}; see '{self.prog} --help'\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown options and commands before argparse misses an argument.

        For example, it would take the value of a misspelt option for the queue.
        """
        for word in args:
            if self._subparsers is not None and not word.startswith("-"):
                self._check(word, [command.name for command in COMMANDS], "command")
                break
            if word == "--":
                break
            if word.startswith("-") and not _NO_OPTION.fullmatch(word):
                name = word.partition("=")[0]
                self._check(name, list(self._option_string_actions), "option")
        return super().parse_known_args(args, namespace)

    def _check(self, name: str, known: list[str], kind: str) -> None:
        """End unless `name` is one of those `known`, or the beginning of an option."""
        beginning = name if name.startswith("--") else None
        if name in known or (beginning and any(k.startswith(name) for k in known)):
            return
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        self.error(f"unknown {kind} {name!r}{hint}")


def _without_values(message: str) -> str:
    """Return what argparse says without the values of options that it refuses.

    An option that it does not know may be a misspelt ``--password``.
    """
    said, unknown, words = message.partition("unrecognized arguments: ")
    found = words.split()
    options = [word for word in found if word.startswith("-")]
    said += unknown + " ".join(options or map(without_userinfo, found))
    said = re.sub(r"(--?\w[\w-]*)=\S+", r"\1", said)
    return re.sub(r"'([^']*)'", lambda found: f"'{without_userinfo(found[1])}'", said)


class _Version(argparse.Action):
    """Prints the version. It is read from the metadata only then."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        text = "show program's version number and exit"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.prog, version("postcommit"))
        parser.exit()


def _parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Return the parser, with all commands or only with that of `words`.

    The module of a command adds its arguments, and importing all modules takes longer
    than most commands.
    """
    parser = _Parser(
        prog="postcommit",
        description="Mail that leaves when, and only when, the transaction commits.",
        epilog=_SHOWS_THE_WAY,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version)
    _add_debug(parser, default=False)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = subparsers.add_parser(
            command.name, help=command.summary, description=command.summary
        )
        sub.set_defaults(run=command.run)
        _add_debug(sub, default=argparse.SUPPRESS)  # keeps what came before
        if words is None or command.name in words:
            command.arguments(sub)
    return parser


def _add_debug(parser: argparse.ArgumentParser, *, default: object) -> None:
    text = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", default=default, help=text)
