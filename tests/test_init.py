"""The package: its public names, and what importing it costs."""
from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import module_from_spec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import postcommit
from postcommit import errors
from postcommit import testing
from postcommit._exports import exports


def test_each_public_name_is_handed_out() -> None:
    for name in dir(postcommit):
        value = getattr(postcommit, name)
        assert name == "__version__" or value.__name__ == name
        assert vars(postcommit)[name] is value


def test_the_names_are_those_of_a_star_import() -> None:
    names: dict[str, object] = {}
    exec("from postcommit import *", names)
    assert names.keys() - {"__builtins__"} == set(dir(postcommit))


def test_the_public_names_are_flat() -> None:
    there = set(dir(postcommit))
    assert {"Status", "TLSMode", "Tally", "DeliveryReport", "Outcome", "Reply"} <= there
    assert there >= {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PostcommitError)
    }
    assert postcommit.__version__ == version("postcommit")


@pytest.mark.parametrize("package", [postcommit, testing])
def test_each_public_name_is_written_once(package: ModuleType) -> None:
    stub = Path(package.__path__[0], "__init__.pyi").read_text()
    names = re.findall(r"^from [\w.]+ import \w+ as (\w+)$", stub, re.MULTILINE)
    assert sorted(names) == dir(package)
    source = Path(package.__path__[0], "__init__.py").read_text()
    code = source.rpartition('"""')[2]
    assert not [name for name in names if name in code]


def run(code: str, path: Path) -> str:
    """Run `code` with what is at `path`, and return what it prints."""
    code = f"import sys; sys.path[:0] = [{str(path)!r}]\n{code}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_package_without_its_stub_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copytree(postcommit.__path__[0], tmp_path / "postcommit")
    (tmp_path / "postcommit" / "__init__.pyi").unlink()
    for code in ("from postcommit import Tally", "import postcommit; dir(postcommit)"):
        last = run(code, tmp_path).splitlines()[-1]
        assert re.fullmatch(
            r"ImportError: .*/postcommit/__init__.pyi is missing, .*install.*", last
        )


def test_a_stub_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "__init__.py"
    path.touch()
    spec = spec_from_file_location("stubless", path)
    assert spec is not None
    sys.modules["stubless"] = module_from_spec(spec)
    try:
        _, names = exports("stubless")
        with pytest.raises(ImportError, match=r"__init__\.pyi is missing") as caught:
            names()
    finally:
        del sys.modules["stubless"]
    assert caught.value.name == "stubless"
    assert caught.value.path == f"{path}i"


def test_the_names_are_found_in_a_zip(tmp_path: Path) -> None:
    root = Path(postcommit.__path__[0]).parent
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as packages:
        for path in root.glob("postcommit/**/*.py*"):
            packages.write(path, path.relative_to(root))
    code = "from postcommit import Tally; print(sys.modules['postcommit'].__file__)"
    shown = run(code, tmp_path / "packages.zip")
    assert shown.strip() == f"{tmp_path}/packages.zip/postcommit/__init__.py"


def test_an_import_reads_no_other_packages_machinery() -> None:
    code = "import postcommit; print('pkgutil' in sys.modules)"
    assert run(code, Path(postcommit.__path__[0]).parent).strip() == "False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SMPTMailer'"):
        _ = postcommit.SMPTMailer  # type: ignore[attr-defined]


def test_an_extra_that_is_missing_is_named() -> None:
    code = "import sys; sys.modules['pyramid'] = None; import postcommit.pyramid"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.endswith(
        "postcommit.errors.MissingExtraError: pyramid is missing; install it:"
        " pip install 'postcommit[pyramid]'\n"
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, postcommit\n"
        "heavy = {'smtplib', 'ssl', 'email', 'socket', 'asyncio', 'idna'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "postcommit.QueuedMailDelivery\n"
        "heavy = {'smtplib', 'ssl', 'asyncio', 'tempfile', 'postcommit._mailers'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-S", "-c", code]
    path = ":".join(p for p in sys.path if p)
    done = subprocess.run(
        command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n[]\n", "nor does a queued delivery"
