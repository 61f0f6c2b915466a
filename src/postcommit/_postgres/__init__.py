"""The queue in PostgreSQL: entries are rows, and claims are leases.

Importing this package without the extra raises `MissingExtraError`.
"""
from __future__ import annotations

from postcommit.errors import MissingExtraError


try:
    import psycopg  # noqa: F401
except ModuleNotFoundError as _missing:
    raise MissingExtraError("postgres", "psycopg") from _missing
