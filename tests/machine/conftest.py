"""A database for each sequence: a machine starts a record from nothing many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.conftest import as_superuser


@pytest.fixture
def clone(fresh_database: str) -> Callable[[], AbstractContextManager[str]]:
    """Clones a migrated database as often as it is asked to."""
    source = str(conninfo_to_dict(fresh_database)["dbname"])
    elsewhere = make_conninfo(as_superuser(fresh_database), dbname="postgres")
    names = (f"{source}_{count}" for count in itertools.count(1))

    @contextmanager
    def cloned() -> Iterator[str]:
        name = next(names)
        with psycopg.connect(elsewhere, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source)))
        try:
            yield fresh_database.replace(source, name)
        finally:
            with psycopg.connect(elsewhere, autocommit=True) as conn:
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    return cloned
