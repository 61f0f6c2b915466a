"""``postcommit completion``: what a shell needs to complete the command.

One table is made of the parser, for all shells; so what is completed is what
the command takes.
"""
from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import NamedTuple


SHELLS = ("bash", "zsh", "fish")

_FOLDERS = "QUEUE"


class _Option(NamedTuple):
    """An option; `choices` are empty where it takes none or any value."""

    names: tuple[str, ...]
    told: str
    takes_value: bool
    choices: tuple[str, ...]
    is_file: bool


class _Command(NamedTuple):
    name: str
    told: str
    options: tuple[_Option, ...]
    words: tuple[str, ...]
    has_queue: bool


def arguments(parser: argparse.ArgumentParser) -> None:
    told = "bash: source <(postcommit completion bash)"
    parser.add_argument("shell", choices=SHELLS, help=told)


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that completes the command of `parser` in `shell`."""
    commands = list(_commands(parser))
    if shell == "fish":
        return "".join(f"{line}\n" for line in _fish(commands))
    lines = list(_bash(commands))
    if shell == "zsh":
        # The shell reads those of bash, too.
        lines[:0] = ["autoload -U +X bashcompinit && bashcompinit"]
    return "".join(f"{line}\n" for line in lines)


# From the parser


def _commands(parser: argparse.ArgumentParser) -> Iterator[_Command]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield _command(name, sub)


def _command(name: str, parser: argparse.ArgumentParser) -> _Command:
    shown = [a for a in parser._actions if a.help != argparse.SUPPRESS]
    positional = [a for a in shown if not a.option_strings]
    return _Command(
        name,
        parser.description or "",
        tuple(_option(action) for action in shown if action.option_strings),
        tuple(str(word) for action in positional for word in action.choices or ()),
        any(action.metavar == _FOLDERS for action in positional),
    )


def _option(action: argparse.Action) -> _Option:
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    choices = tuple(str(choice) for choice in action.choices or ())
    return _Option(
        tuple(action.option_strings),
        (action.help or "").replace("%%", "%"),
        action.nargs != 0,
        choices or (tuple(metavar.split("|")) if "|" in metavar else ()),
        metavar == "FILE" or action.dest == "cafile",
    )


# For the shells


def _bash(commands: list[_Command]) -> Iterator[str]:
    yield "_postcommit() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}"'
    yield '    local before="${COMP_WORDS[COMP_CWORD-1]}"'
    yield "    COMPREPLY=()"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"        {_words([c.name for c in commands])}"
    yield "        return"
    yield "    fi"
    yield '    case "${COMP_WORDS[1]} $before" in'
    for command in commands:
        for option in command.options:
            if option.takes_value:
                patterns = "|".join(f'"{command.name} {n}"' for n in option.names)
                yield f"    {patterns}) {_bash_value(option)}; return;;"
    yield "    esac"
    yield '    case "${COMP_WORDS[1]}" in'
    for command in commands:
        names = [name for option in command.options for name in option.names]
        yield f"    {command.name})"
        yield f'        if [[ "$word" == -* ]]; then {_words(names)}'
        if command.has_queue:
            yield '        else COMPREPLY=($(compgen -d -- "$word"))'
        elif command.words:
            yield f"        else {_words(command.words)}"
        yield "        fi;;"
    yield "    esac"
    yield "}"
    yield "complete -o filenames -F _postcommit postcommit"


def _words(words: list[str] | tuple[str, ...]) -> str:
    return f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"))'


def _bash_value(option: _Option) -> str:
    if option.choices:
        return _words(option.choices)
    return 'COMPREPLY=($(compgen -f -- "$word"))' if option.is_file else ":"


def _fish(commands: list[_Command]) -> Iterator[str]:
    first = "complete -c postcommit"
    # Files for none but the options that take one: there, -F and this -f together
    # would be an error.
    yield f"{first} -f"
    names = " ".join(command.name for command in commands)
    begins = f"'not __fish_seen_subcommand_from {names}'"
    for command in commands:
        yield f"{first} -n {begins} -a {command.name} -d {shlex.quote(command.told)}"
    for command in commands:
        when = f"{first} -n '__fish_seen_subcommand_from {command.name}'"
        if command.has_queue:
            yield f"{when} -a '(__fish_complete_directories)'"
        if command.words:
            yield f"{when} -a '{' '.join(command.words)}'"
        for option in command.options:
            yield f"{when} {_fish_option(option)}"


def _fish_option(option: _Option) -> str:
    parts = [
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
        for name in option.names
    ]
    if option.choices:
        parts.append(f"-x -a '{' '.join(option.choices)}'")
    elif option.takes_value:
        parts.append("-r -F" if option.is_file else "-x")
    return " ".join([*parts, f"-d {shlex.quote(option.told)}"])
