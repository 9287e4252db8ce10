"""The index of a directory of DICOM files, in SQLite: who is in which file, and the rows of each level."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import orjson

from gateway.adapters.files.conditions import STUDY, Conditions
from gateway.adapters.files.scan import Held, Stamp
from gateway.errors import InvalidQuery
from gateway.model.dataset import Dataset, attribute
from gateway.model.query import Ref
from gateway.model.seam import NativeQuery
from gateway.model.vocabulary import (
    INSTANCE_AVAILABILITY,
    MODALITIES_IN_STUDY,
    RETURNED,
    SERIES_INSTANCE_COUNT,
    STUDY_INSTANCE_COUNT,
    STUDY_SERIES_COUNT,
    Level,
    level_of,
    tag,
)
from gateway.model.vocabulary import path as path_of

_VERSION = 2
_SCHEMA = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE held (
    path BLOB PRIMARY KEY, mtime INTEGER, size INTEGER, study TEXT, series TEXT, instance TEXT, patient TEXT,
    issuer TEXT, study_date TEXT, modality TEXT, sop_class TEXT, transfer_syntax TEXT, attributes BLOB
);
CREATE INDEX held_order ON held (study, issuer, patient, series, instance, path);
CREATE INDEX held_patient ON held (patient);
CREATE INDEX held_date ON held (study_date);
CREATE INDEX held_series ON held (series);
CREATE INDEX held_instance ON held (instance);
CREATE TABLE skipped (path BLOB PRIMARY KEY, mtime INTEGER, size INTEGER);
"""
_COLUMNS = (
    "path, mtime, size, study, series, instance, patient, issuer, study_date, modality, sop_class, transfer_syntax"
)
_GROUP = {Level.STUDY: STUDY, Level.SERIES: (*STUDY, "series"), Level.IMAGE: (*STUDY, "series", "instance")}
_AVAILABLE_SYNTAX = tag("AvailableTransferSyntaxUID")
_CLASSES_IN_STUDY = tag("SOPClassesInStudy")
_FEW = 200


class Index:
    """One SQLite file. Everything blocks; each call opens a connection of its own, so any thread may call.

    Paths are kept as the bytes that they are: a name need not be UTF-8, and then is no text for SQLite.
    """

    def __init__(self, file: Path, settings: dict[str, str]) -> None:
        """`settings` are what the content depends on: an index made under others is thrown away."""
        self.file = file
        self._settings = {**settings, "version": str(_VERSION)}

    def open(self) -> None:
        """Makes the index, readable by this user only; a damaged one, or one of another make, is made anew."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            with closing(self._connect()) as connection:
                if self._is_current(connection):
                    return
        except sqlite3.DatabaseError:
            pass
        self._start_anew()

    def restore(self) -> None:
        """Makes it anew where somebody has deleted it, as those do who tidy up; SQLite leaves an empty file in its place."""
        if not self.file.exists() or not self.file.stat().st_size:
            self.open()

    def _is_current(self, connection: sqlite3.Connection) -> bool:
        tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'setting'").fetchone()[0]
        return bool(tables) and dict(connection.execute("SELECT name, value FROM setting")) == self._settings

    def _start_anew(self) -> None:
        for suffix in ("-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
        os.truncate(self.file, 0)
        with closing(self._connect()) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
            connection.executemany("INSERT INTO setting VALUES (?, ?)", self._settings.items())

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=10, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def stamps(self) -> dict[str, Stamp]:
        """What every known file looked like when it was read, or refused."""
        with closing(self._connect()) as connection:
            rows = connection.execute(
                "SELECT path, mtime, size FROM held UNION ALL SELECT path, mtime, size FROM skipped"
            )
            return {os.fsdecode(path): (mtime, size) for path, mtime, size in rows}

    def update(self, read: Iterable[Held], refused: Iterable[tuple[str, Stamp]], gone: Iterable[str]) -> None:
        """Takes in what a scan found, all or nothing."""
        with closing(self._connect()) as connection, connection:
            for path in gone:
                _forget(connection, path)
            for path, stamp in refused:
                _forget(connection, path)
                connection.execute("INSERT INTO skipped VALUES (?, ?, ?)", (os.fsencode(path), *stamp))
            for held in read:
                _forget(connection, held.path)
                connection.execute(f"INSERT INTO held VALUES ({', '.join('?' * 13)})", _row_of(held))  # noqa: S608

    def holds(self, path: str) -> bool:
        """Whether an instance is known to be in this file."""
        with closing(self._connect()) as connection:
            return connection.execute("SELECT 1 FROM held WHERE path = ?", (os.fsencode(path),)).fetchone() is not None

    def counts(self) -> tuple[int, int]:
        """(files held, files skipped)."""
        with closing(self._connect()) as connection:
            found: tuple[int, int] = connection.execute(
                "SELECT (SELECT count(*) FROM held), (SELECT count(*) FROM skipped)"
            ).fetchone()
            return found

    def files(self, ref: Ref) -> list[Held]:
        """The file of each instance under `ref`, once per patient; of several copies the first by name."""
        wanted = [("study", ref.study), ("series", ref.series), ("instance", ref.instance)]
        clauses = [(f"{column} = ?", uid) for column, uid in wanted if uid]
        group = ", ".join(_GROUP[Level.IMAGE])
        with closing(self._connect()) as connection:
            rows = connection.execute(
                f"SELECT min(path), {_COLUMNS} FROM held WHERE {' AND '.join(clause for clause, _ in clauses)} "  # noqa: S608
                f"GROUP BY {group} ORDER BY {group}",
                [uid for _, uid in clauses],
            )
            return [_held_of(row[1:]) for row in rows]

    def instance(self, uid: str) -> Path | None:
        """The file that holds a SOP Instance UID, whoever's it is."""
        with closing(self._connect()) as connection:
            row = connection.execute("SELECT min(path) FROM held WHERE instance = ?", (uid,)).fetchone()
            return Path(os.fsdecode(row[0])) if row[0] else None

    def rows(self, query: NativeQuery, found: Conditions) -> Generator[list[Dataset], None, None]:
        """The rows of the query's level, a few at a time, one more than the limit when there are more."""
        group = ", ".join(_GROUP[query.level])
        with closing(self._connect()) as connection:
            studies = _Studies(connection)
            cursor = connection.execute(
                f"SELECT min(path), study, issuer, patient, series, transfer_syntax, attributes FROM held "  # noqa: S608
                f"WHERE {found.where} GROUP BY {group} ORDER BY {group} LIMIT ?",
                [*found.values, -1 if query.limit is None else query.limit + 1],
            )
            while some := cursor.fetchmany(_FEW):
                yield [_row(query, studies, *row[1:]) for row in some]


def _forget(connection: sqlite3.Connection, path: str) -> None:
    name = os.fsencode(path)
    connection.execute("DELETE FROM held WHERE path = ?", (name,))
    connection.execute("DELETE FROM skipped WHERE path = ?", (name,))


def _row_of(held: Held) -> tuple[Any, ...]:
    return (
        os.fsencode(held.path), *held.stamp, held.study, held.series, held.instance, held.patient, held.issuer, held.study_date,
        held.modality, held.sop_class, held.transfer_syntax, held.attributes,
    )  # fmt: skip


def _held_of(row: tuple[Any, ...]) -> Held:
    path, mtime, size, *others = row
    return Held(os.fsdecode(path), (mtime, size), *others)


@dataclass(frozen=True, slots=True)
class _StudyCounts:
    """What is computed for one study: instances per series, modalities, SOP classes."""

    instances: dict[str, int]
    modalities: list[str]
    sop_classes: list[str]


class _Studies:
    """Counts studies, each once in a search."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.of = lru_cache(maxsize=64)(partial(_count, connection))


def _count(connection: sqlite3.Connection, study: str, issuer: str, patient: str) -> _StudyCounts:
    rows = connection.execute(
        "SELECT series, modality, sop_class, count(DISTINCT instance) FROM held "
        "WHERE study = ? AND issuer = ? AND patient = ? GROUP BY series, modality, sop_class",
        (study, issuer, patient),
    ).fetchall()
    instances: dict[str, int] = {}
    for series, _, _, count in rows:
        instances[series] = instances.get(series, 0) + count
    return _StudyCounts(instances, sorted({row[1] for row in rows if row[1]}), sorted({row[2] for row in rows}))


def _row(
    query: NativeQuery, studies: _Studies, study: str, issuer: str, patient: str, series: str, syntax: str, held: bytes
) -> Dataset:
    """One row: the attributes of its level and of those above, from one file, and what is counted."""
    attributes: Dataset = orjson.loads(held)
    wanted = _asked(query)
    row = {key: value for key, value in attributes.items() if _belongs(key, query, wanted)}
    counts = studies.of(study, issuer, patient)
    row[INSTANCE_AVAILABILITY] = attribute(INSTANCE_AVAILABILITY, ["ONLINE"])
    row[MODALITIES_IN_STUDY] = attribute(MODALITIES_IN_STUDY, counts.modalities)
    row[_CLASSES_IN_STUDY] = attribute(_CLASSES_IN_STUDY, counts.sop_classes)
    row[STUDY_SERIES_COUNT] = attribute(STUDY_SERIES_COUNT, [len(counts.instances)])
    row[STUDY_INSTANCE_COUNT] = attribute(STUDY_INSTANCE_COUNT, [sum(counts.instances.values())])
    if query.level is not Level.STUDY:
        row[SERIES_INSTANCE_COUNT] = attribute(SERIES_INSTANCE_COUNT, [counts.instances[series]])
    if query.level is Level.IMAGE:
        row[_AVAILABLE_SYNTAX] = attribute(_AVAILABLE_SYNTAX, [syntax])
    return dict(sorted(row.items()))


def _asked(query: NativeQuery) -> frozenset[str]:
    """The attributes named in the query, as return keys or matching keys."""
    found = set()
    for name in (*query.return_, *(match.path for match in query.match)):
        try:
            found.add(path_of(name)[0])
        except InvalidQuery:
            continue
    return frozenset(found)


def _belongs(key: str, query: NativeQuery, wanted: frozenset[str]) -> bool:
    """Whether an attribute stands in a row: that of a level below would be one series' or instance's own."""
    level = level_of((key,))
    if level is not Level.IMAGE:
        return level is Level.STUDY or query.level is not Level.STUDY
    return query.level is Level.IMAGE and (query.all_attributes or key in wanted or key in RETURNED[Level.IMAGE])
