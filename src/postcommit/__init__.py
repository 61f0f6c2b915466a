"""Mail that leaves when, and only when, the transaction commits.

The stub ``__init__.pyi`` has the public names.
"""
from __future__ import annotations

from postcommit._exports import exports


__getattr__, __dir__ = exports(__name__)
