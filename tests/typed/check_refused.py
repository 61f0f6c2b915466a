"""Checks that mypy refuses each line of refused.py that ends in the code of an error.

A call that is wrong and passes is as bad as a call that is right and does not.
"""
from __future__ import annotations

import re
import sys
from pathlib import Path

from mypy import api


HERE = Path(__file__).parent


def main() -> int:
    """Return 0 if the errors are those that are wanted."""
    source = (HERE / "refused.py").read_text()
    lines = enumerate(source.splitlines(), 1)
    found = {n: re.search(r"  # ([\w-]+)$", line) for n, line in lines}
    wanted = {(str(n), code[1]) for n, code in found.items() if code}
    config = str(HERE / "mypy.ini")
    shown, errors, _ = api.run(["--config-file", config, str(HERE / "refused.py")])
    refused = set(re.findall(r"refused\.py:(\d+): error: .*\[([\w-]+)\]$", shown, re.M))
    if refused != wanted:
        print(shown, errors, "differ from the lines marked:", sorted(refused ^ wanted))
    return refused != wanted


if __name__ == "__main__":
    sys.exit(main())
