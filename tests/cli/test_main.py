"""The command: statuses, and errors in one line."""
from __future__ import annotations

import argparse
import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import pytest
from zope.schema import Bool
from zope.schema import Float
from zope.schema import Int

from postcommit import Maildir
from postcommit._cli import main as cli
from postcommit._cli.main import Subcommand
from postcommit._cli.main import main
from postcommit._config.options import fields_of
from postcommit.errors import OptionError
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import ISMTPMailer
from tests.support.service import COMMAND
from tests.support.service import environment


def command(monkeypatch, run, arguments=cli._no_arguments):
    """Make ``postcommit work`` a command that calls `run`."""
    made = Subcommand("work", "works", run, arguments)
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, made))


def failing(error):
    def run(options):
        raise error

    return run


def ended(*argv):
    """Return the status with which the parser exits."""
    with pytest.raises(SystemExit) as info:
        main(argv)
    return info.value.code


def test_version(capsys):
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"postcommit {version('postcommit')}\n"


def test_the_page_lists_every_command():
    page = (Path(__file__).parents[2] / "docs" / "operating.rst").read_text()
    table = page.partition("   * - command\n")[2].partition("\n\n")[0]
    rows = re.findall(r"(?m)^   \* - (.*)$", table)
    listed = re.findall(r"``([\w-]+)``", " ".join(rows))
    assert sorted(listed) == sorted(command.name for command in cli.COMMANDS)


def test_help_lists_every_command(capsys):
    assert ended("--help") == 0
    out = capsys.readouterr().out
    for known in cli.COMMANDS:
        assert f"\n    {known.name}" in out
        assert known.summary in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("known", cli.COMMANDS, ids=lambda known: known.name)
def test_every_command_has_help(known, capsys):
    assert ended(known.name, "--help") == 0
    assert known.summary in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["demo", "--fly"], "--fly"),
        (["demo", "high"], "high"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_to_read_on(argv, told, capsys):
    assert ended(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("postcommit: ")
    assert told in err
    assert "--help'" in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["stauts", "q"], "unknown command 'stauts' (did you mean status?)"),
        (["fly"], "unknown command 'fly'; see 'postcommit --help'"),
        (["--verison"], "unknown option '--verison' (did you mean --version?)"),
        (["run", "--rate-limt", "5", "q"], "(did you mean --rate-limit?)"),
        (["run", "q", "--time-out=5"], "'--time-out' (did you mean --timeout?)"),
        (["show", "--jsno", "q"], "'--jsno' (did you mean --json?)"),
        (["delete", "q", "ALL", "-y"], "unknown option '-y'; see 'postcommit delete"),
        (["list", "q", "--to", "-x"], "unknown option '-x'"),
        (["list", "--", "--to", "q"], "unrecognized arguments: q"),
        # Python 3.14 takes it for a number, and others for an option.
        (["status", "q", "--warn-failed", "-5x"], "argument --warn-failed: "),
        (["status", "--warn-f", "-5"], "required: QUEUE"),
        (["retry", "-"], "required: ID"),
    ],
)
def test_what_is_unknown_is_answered_with_the_nearest_one(argv, told, capsys):
    assert ended(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == 1


def options():
    """Return each option of the schemas as it is on the command line, and its field."""
    for schema in (ISMTPMailer, IMailQueueProcessor):
        for name, field in fields_of(schema).items():
            if name not in ("password", "queue_path"):
                yield pytest.param(f"--{name.replace('_', '-')}", field, id=name)


@pytest.mark.parametrize(("option", "field"), list(options()))
def test_help_shows_what_an_option_takes_and_its_default(
    option, field, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "300")
    assert ended("run", "--help") == 0
    out = capsys.readouterr().out
    said = re.search(rf"^  {option}\b(.*)\n(.*)", out, re.MULTILINE)
    assert said is not None
    assert said[1].startswith(" N") == isinstance(field, Int | Float)
    default = re.search(r"\(default: (.+?)\)", said[0])
    assert default is not None
    if isinstance(field, Bool):
        assert default[1] == ("yes" if field.default else "no")
    elif isinstance(field, Int | Float) and field.default is not None:
        assert float(default[1]) == field.default
        assert not default[1].endswith(".0")
    else:
        assert default[1] == ("none" if field.default is None else field.default)


def test_help_of_the_commands_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert ended("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 84
    for known in cli.COMMANDS:
        assert f"    {known.name:<12}{known.summary}" in lines


def test_a_command_gets_its_options_and_returns_the_status(monkeypatch):
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int)

    command(monkeypatch, lambda options: options.number, arguments)
    assert main(["work", "--number", "7"]) == 7


def test_an_error_of_ours_is_told_as_it_is(monkeypatch, capsys):
    command(monkeypatch, failing(OptionError("port", 70000, "is too\nmuch")))
    assert main(["work"]) == 2
    assert capsys.readouterr().err == "postcommit: port=70000: is too much\n"


def test_an_error_of_the_system_is_told_as_it_is(monkeypatch, capsys):
    command(monkeypatch, failing(PermissionError(13, "Permission denied", "q")))
    assert main(["work"]) == 2
    told = "postcommit: [Errno 13] Permission denied: 'q'; run as the user that owns"
    assert capsys.readouterr().err == f"{told} the queue\n"


def test_an_error_of_the_system_without_advice(monkeypatch, capsys):
    command(monkeypatch, failing(OSError(5, "Input/output error", "q")))
    assert main(["work"]) == 2
    told = "postcommit: [Errno 5] Input/output error: 'q'\n"
    assert capsys.readouterr().err == told


def test_an_error_of_our_own_output_has_no_advice_about_files(monkeypatch, capsys):
    command(monkeypatch, failing(OSError(28, "No space left on device")))
    assert main(["work"]) == 2
    told = "postcommit: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_may_be_closed(closed, tmp_path):
    Maildir(str(tmp_path / "queue"), create=True)
    shell = f"{shlex.join(COMMAND)} flush {tmp_path}/queue {closed}"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = "recipients: 0 sent, 0 deferred, 0 rejected\n"
    assert done.stdout == ("" if "1>&-" in closed else told)


def test_what_does_not_fit_the_encoding_is_escaped(monkeypatch, tmp_path):
    command(monkeypatch, lambda options: print("t\u00e9 \u2026"))
    with open(tmp_path / "out", "w", encoding="latin-1") as out:
        monkeypatch.setattr(sys, "stdout", out)
        main(["work"])
    assert (tmp_path / "out").read_bytes() == b"t\xe9 \\u2026\n"


def test_the_output_may_be_any_stream(monkeypatch):
    command(monkeypatch, lambda options: print("done"))
    with redirect_stdout(io.StringIO()) as out:
        main(["work"])
    assert out.getvalue() == "done\n"


def test_an_error_that_nobody_expects_is_told_with_its_type(monkeypatch, capsys):
    command(monkeypatch, failing(LookupError("no such thing")))
    assert main(["work"]) == 2
    told = "postcommit: LookupError: no such thing; --debug shows where\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("argv", [["--debug", "work"], ["work", "--debug"]])
def test_debug_shows_the_traceback(argv, monkeypatch, capsys):
    command(monkeypatch, failing(LookupError("no such thing")))
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("LookupError: no such thing\n")


def test_interrupted(monkeypatch, capsys):
    command(monkeypatch, failing(KeyboardInterrupt()))
    assert main(["work"]) == 130
    assert capsys.readouterr() == ("", "postcommit: interrupted\n")


def test_a_reader_that_goes_away_is_no_error(monkeypatch, capsys, tmp_path):
    def run(options):
        print("lost")
        raise BrokenPipeError

    command(monkeypatch, run)
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["work"]) == 1
    assert capsys.readouterr().err == ""
    assert (tmp_path / "out").read_text() == ""


def test_the_script_is_installed():
    script = "from importlib.metadata import entry_points as e\n"
    script += "[m] = e(group='console_scripts', name='postcommit')\n"
    script += "raise SystemExit(m.load()(['--version']))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"postcommit {version('postcommit')}\n"


def test_the_command_imports_no_more_than_it_runs():
    script = "import sys, postcommit._cli.main; print('aiosmtpd' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
