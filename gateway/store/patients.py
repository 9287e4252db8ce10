"""Patient ids for the web: an opaque id per (issuer, id), and the way back from it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sqlite3
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from gateway.errors import SettingsError
from gateway.model.patient import PatientKey
from gateway.telemetry import log

_REMEMBERED = 100_000


class PatientIds:
    """`id_of` is 32 hex digits of HMAC-SHA-256(secret, issuer|id): the same on every replica with the same secret.

    The way back is kept in memory, and in an SQLite file where one is given, so that a Patient id survives a restart.
    """

    def __init__(self, secret: bytes, file: Path | None = None) -> None:
        self._secret = secret
        self._file = file
        self._known: OrderedDict[str, PatientKey] = OrderedDict()
        self._new: dict[str, PatientKey] = {}
        self._database: sqlite3.Connection | None = None
        self._lock = Lock()

    async def open(self) -> None:
        """Raises SettingsError when the file cannot be used."""
        if self._file is not None:
            self._database = await asyncio.to_thread(self._connect, self._file)

    async def close(self) -> None:
        await self.flush()
        if self._database is not None:
            self._database.close()
            self._database = None

    def id_of(self, key: PatientKey) -> str:
        """The Patient.id of a patient with an id of its own."""
        message = f"{len(key.issuer)}|{key.issuer}|{key.id}".encode()
        identifier = hmac.digest(self._secret, message, hashlib.sha256).hex()[:32]
        if identifier not in self._known:
            self._known[identifier] = self._new[identifier] = key
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return identifier

    async def key_of(self, identifier: str) -> PatientKey | None:
        """The patient of an id that was given out; None for any other."""
        key = self._known.get(identifier)
        if key is None and self._database is not None:
            key = await asyncio.to_thread(self._read, identifier)
        return key

    async def flush(self) -> None:
        """Writes what was learned since the last time; without a file there is nowhere to write and it is let go."""
        new, self._new = self._new, {}
        if not new or self._database is None:
            return
        try:
            await asyncio.to_thread(self._write, new)
        except sqlite3.Error as error:
            # The answer that gave them out is right all the same: they are written with the next ones.
            self._new = dict(list((new | self._new).items())[-_REMEMBERED:])
            log().error("store", outcome="failed", reason=type(error).__name__)

    def _connect(self, file: Path) -> sqlite3.Connection:
        try:
            database = sqlite3.connect(file, check_same_thread=False)
            file.chmod(0o600)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS patient (id TEXT PRIMARY KEY, issuer TEXT, patient TEXT)")
        except (sqlite3.Error, OSError):
            raise SettingsError(f"GATEWAY_STORE: {file} cannot be used as a database") from None
        return database

    def _write(self, new: dict[str, PatientKey]) -> None:
        assert self._database is not None
        with self._lock, self._database:
            rows = [(identifier, key.issuer, key.id) for identifier, key in new.items()]
            self._database.executemany("INSERT OR IGNORE INTO patient VALUES (?, ?, ?)", rows)

    def _read(self, identifier: str) -> PatientKey | None:
        assert self._database is not None
        with self._lock:
            query = "SELECT issuer, patient FROM patient WHERE id = ?"
            row = self._database.execute(query, (identifier,)).fetchone()
        return PatientKey(*row) if row else None
