"""A database that asks for a password: `vault://user:PASSWORD@host/path`, sqlite behind it.

Like the drivers of real ones it says no at connecting; unlike them it says the password that it was given.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL

PASSWORD = "tr0ub4dor&3"
"""The only one that opens it; in a URL its & is written %26."""


class Vault(SQLiteDialect_pysqlite):
    """The dialect."""

    supports_statement_cache = True

    def create_connect_args(self, url: URL) -> Any:
        """Return what `connect` takes."""
        return [f"/{url.database}"], {"password": url.password}

    def connect(self, *args: Any, password: str | None = None, **options: Any) -> Any:
        """Return a connection; raises OperationalError for a wrong password."""
        if password is None:
            raise sqlite3.OperationalError("no password supplied\nis the server running?")
        if password == "not repeated":
            raise sqlite3.OperationalError('password authentication failed for user "user"')
        if password != PASSWORD:
            raise sqlite3.OperationalError(f"password {password} is wrong")
        return super().connect(*args, **options)


registry.register("vault", "vault", "Vault")
