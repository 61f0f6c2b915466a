"""Packaging and CI say the same thing wherever they say it."""
from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import stat
import subprocess
from pathlib import Path

import postcommit


ROOT = Path(__file__).parent.parent


def read(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string((ROOT / name).read_text())
    return parser


SETUP = read("setup.cfg")
TOX = read("tox.ini")


def minors(text: str, pattern: str) -> list[int]:
    return sorted(int(minor) for minor in re.findall(pattern, text))


PROMISED = minors(SETUP["metadata"]["classifiers"], r"Python :: 3\.(\d+)\b")

# CI does not have these. They have commands, but are not in the default list.
NOT_IN_CI = [14]


def test_the_tests_run_on_each_python_that_is_promised() -> None:
    commands = TOX["testenv"]["commands"]
    assert minors(commands, r"(?m)^py3(\d+): .*\{posargs:tests\}$") == PROMISED
    tested = minors(TOX["tox"]["envlist"], r"\bpy3(\d+)\b")
    assert tested == [minor for minor in PROMISED if minor not in NOT_IN_CI]
    assert SETUP["options"]["python_requires"] == f">= 3.{PROMISED[0]}"
    [looked_for] = re.findall(r"for minor in ([\d ]+);", ci())
    assert minors(looked_for, r"\d+") == tested


def test_a_python_that_is_not_in_ci_is_skipped_where_it_is_missing() -> None:
    assert TOX["tox"]["skip_missing_interpreters"] == "true"
    page = (ROOT / "CONTRIBUTING.rst").read_text()
    for minor in NOT_IN_CI:
        assert f"``tox -e py3{minor}``" in page
    versions = (ROOT / "docs" / "versioning.rst").read_text()
    assert f"Today these are 3.{PROMISED[0]} to 3.{PROMISED[-1]}." in versions


def test_the_branches_are_counted_on_one_python() -> None:
    commands = TOX["testenv"]["commands"]
    [counted] = set(re.findall(r"^(py\d+): coverage ", commands, re.MULTILINE))
    assert counted in TOX["tox"]["envlist"]


def test_the_oldest_python_runs_all_tests() -> None:
    commands = TOX["testenv"]["commands"]
    pattern = r'^(py\d+): .*pytest \S+ ?(?:-m "([a-z ]+)")? \{posargs:tests\}$'
    oldest, *between, newest = re.findall(r"\bpy3\d+\b", TOX["tox"]["envlist"])
    assert dict(re.findall(pattern, commands, re.M)) == {
        oldest: "",
        **dict.fromkeys(between, "not slow"),
        newest: "not once",
        **{f"py3{minor}": "not once" for minor in NOT_IN_CI},
    }


def test_what_is_installed_is_this_version() -> None:
    version = SETUP["metadata"]["version"]
    assert importlib.metadata.version("postcommit") == version
    released = version.partition(".dev")[0]
    changes = (ROOT / "CHANGES.rst").read_text()
    newest = re.findall(r"^(\d+\.\d+\.\d+) \(.*\)\n-+$", changes, re.MULTILINE)[0]
    assert newest == released


def test_the_addresses_of_the_project_are_in_one_place() -> None:
    """None exists before the first release, and the page says so."""
    addresses = re.findall(r"https://[\w.]+", SETUP["metadata"]["project_urls"])
    assert len(addresses) == 4
    for page in (*ROOT.glob("*.rst"), *ROOT.glob("docs/**/*.rst")):
        text = page.read_text()
        assert not [name for name in addresses if f"{name}/postcommit" in text]
        assert "postcommit.readthedocs.io" not in text
    releasing = (ROOT / "docs" / "releasing.rst").read_text()
    assert "None of them exists yet" in releasing


def test_type_checkers_are_told_of_the_types() -> None:
    assert (Path(postcommit.__file__).parent / "py.typed").exists()


def test_what_an_extra_of_the_application_wants_is_tested() -> None:
    extras = {
        name: set(wanted.split("\n")) - {""}
        for name, wanted in SETUP["options.extras_require"].items()
    }
    for name, wanted in extras.items():
        if name != "docs":
            assert wanted <= extras["test"], name


def ci() -> str:
    return (ROOT / ".ci" / "run").read_text()


def test_the_script_of_ci_is_sound() -> None:
    path = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert "set -euo pipefail" in ci()
    assert os.stat(path).st_mode & stat.S_IXUSR


def test_the_pages_are_built_alike_everywhere() -> None:
    hosted = (ROOT / ".readthedocs.yaml").read_text()
    [extras] = re.findall(r"extra_requirements:\n((?: +- \w+\n)+)", hosted)
    assert re.findall(r"\w+", extras) == TOX["testenv:docs"]["extras"].split(", ")
    assert "configuration: docs/conf.py\n  fail_on_warning: true\n" in hosted
    [minor] = minors(hosted, r'python: "3\.(\d+)"')
    assert minor in PROMISED


def test_the_page_for_contributors_names_what_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.rst").read_text()
    environments = set(re.findall(r"``tox -e (\w+)", page))
    assert {"quick", "lint", "docs", "bench"} <= environments
    sections = set(re.findall(r"testenv:(\w+)", "\n".join(TOX.sections())))
    listed = set(re.findall(r"\w+", TOX["tox"]["envlist"]))
    assert environments <= sections | listed | {f"py3{minor}" for minor in NOT_IN_CI}
    [extras] = re.findall(r"pip install -e '\.\[(.*)\]'", page)
    assert set(extras.split(",")) <= set(SETUP["options.extras_require"])
    named = re.findall(r"``((?:docs|tests|\.ci)/[\w./]+|[\w.]+\.(?:rst|cfg))``", page)
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).exists()] == []
