"""Translates a database's errors into the registry's, with the cause and the fix."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa

from tunnelmux.errors import RegistryAway, RegistryError, RegistryFailed, RegistryRefused

__all__ = ["is_worth_another_try", "translate"]

# The SQLSTATE codes of PostgreSQL (its manual, appendix A); a class is the first two characters.
_AWAY_CLASSES = {"08", "57"}
_AWAY_STATES = {"53300", "55P03", "25P03"}
_RETRY_STATES = {"40001", "40P01"}

_DISK_FULL = (
    "its disk is full: make room there; nothing was changed, and no restart is needed afterwards"
)
_READ_ONLY = "it is read-only: give this program's user write access to the database and its folder"


def is_worth_another_try(error: sa.exc.DBAPIError) -> bool:
    """Whether the database gave this transaction up in favour of another one."""
    return getattr(error.orig, "sqlstate", None) in _RETRY_STATES


def translate(error: sa.exc.SQLAlchemyError, place: str, timeout: float) -> RegistryError:
    """The error to raise instead. `place` is the database's name for messages."""
    here = f"the registry at {place}"
    if isinstance(error, sa.exc.TimeoutError):
        return RegistryAway(f"{here} is busy: all connections were in use for {timeout:g} s")
    if isinstance(error, sa.exc.IntegrityError):
        return RegistryRefused(
            "this conflicts with something that was made at the same moment: try again",
            code="conflict",
        )
    if isinstance(error, sa.exc.DataError):
        # A NUL in a search, a name far too long: PostgreSQL refuses these, SQLite does not.
        return RegistryRefused(
            "a value has a character or a length that cannot be stored", code="invalid"
        )
    if not isinstance(error, sa.exc.DBAPIError):
        return RegistryFailed(f"{here} cannot be used: {error}")
    original = error.orig
    if isinstance(original, sqlite3.Error):
        return _of_sqlite(original, here, timeout)
    return _of_postgresql(original, here, timeout)


def _of_sqlite(error: sqlite3.Error, here: str, timeout: float) -> RegistryError:
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return RegistryAway(f"{here} is busy: another program has locked it for {timeout:g} s")
    if name.startswith("SQLITE_INTERRUPT"):
        return RegistryAway(f"{here} took longer than {timeout:g} s; nothing was changed")
    if name.startswith("SQLITE_FULL"):
        return RegistryFailed(f"{here} cannot be written: {_DISK_FULL}")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return RegistryFailed(f"{here} cannot be written: {_READ_ONLY}")
    if name.startswith("SQLITE_CANTOPEN"):
        return RegistryFailed(
            f"{here} cannot be opened: its folder must exist, and this program's user must be able "
            "to write there"
        )
    if name.startswith("SQLITE_IOERR"):
        # A quota or a full file system sometimes gives this error instead of "full".
        return RegistryFailed(
            f"{here} cannot be read or written ({name}): look at the disk, its space and its log"
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return RegistryFailed(f"{here} is no database or is damaged: restore it from a backup")
    return RegistryFailed(f"{here} failed: {error}")


def _of_postgresql(error: BaseException | None, here: str, timeout: float) -> RegistryError:
    state = getattr(error, "sqlstate", None)
    if state is None:
        # An error of psycopg itself: it could not connect, or has lost the connection.
        return RegistryAway(f"{here} does not answer: {_first_line(error)}")
    if state == "57014":
        return RegistryAway(f"{here} took longer than {timeout:g} s; nothing was changed")
    if state in _AWAY_STATES or state[:2] in _AWAY_CLASSES:
        return RegistryAway(f"{here} does not answer: {_first_line(error)}")
    if state == "53100":
        return RegistryFailed(f"{here} cannot be written: {_DISK_FULL}")
    if state == "25006":
        return RegistryFailed(
            f"{here} cannot be written: it is a standby or set to read-only; name the primary"
        )
    if state in _RETRY_STATES:
        return RegistryAway(f"{here} is busy: it gave this change up in favour of others")
    return RegistryFailed(f"{here} failed: {_first_line(error)}")


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().split("\n", 1)[0]
