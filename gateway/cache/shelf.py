"""The index of the spool: what is there, what is whole, what is in use, what has to go. It touches no disk."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gateway.model.query import Ref

_FORGOTTEN_KEPT = 10_000


class NotSpooled(LookupError):
    """The instance has left the spool since it was found: ask the node."""


@dataclass(frozen=True, slots=True)
class SpooledInstance:
    """One Part 10 file in the spool. `path` may be opened only while pinned; its name tells nothing."""

    path: Path
    node: str
    study: str
    series: str
    instance: str
    size: int
    transfer_syntax: str


@dataclass(slots=True)
class Entry:
    instance: SpooledInstance
    committed: float
    pins: int = 0
    retired: bool = False


class Shelf:
    """Instances by node, study, series and SOP Instance UID, and the bytes they take. For use in any thread.

    Methods that take instances out name the files that are to be deleted for it.
    """

    def __init__(self, max_bytes: int, max_age: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes, self.max_age = max_bytes, max_age
        self.used = 0
        self._clock = clock
        self._lock = threading.RLock()
        self._entries: OrderedDict[Path, Entry] = OrderedDict()
        self._studies: dict[tuple[str, str], dict[tuple[str, str], Entry]] = {}
        self._complete: set[tuple[str, str, str | None]] = set()
        self._leaving: dict[Path, int] = {}
        self.position = 0
        self._forgotten: OrderedDict[tuple[str, str | None], int] = OrderedDict()
        self._unknown_before = 0

    def find(
        self, node: str, study: str, series: str | None = None, instance: str | None = None
    ) -> list[SpooledInstance]:
        """What is there of a study, a series or an instance, in the order it came."""
        with self._lock:
            entries = self._studies.get((node, study), {}).items()
            return [
                entry.instance
                for (its_series, its_instance), entry in entries
                if series in (None, its_series) and instance in (None, its_instance) and not self._is_old(entry)
            ]

    def complete(self, node: str, ref: Ref, instances: Iterable[str]) -> tuple[bool, list[Path]]:
        """Marks a series or study as whole if all `instances` are there (and any are); what is beyond them goes."""
        expected = set(instances)
        with self._lock:
            here = [self._entries[found.path] for found in self.find(node, ref.study, ref.series)]
            if ref.instance is not None or not expected or not expected <= {entry.instance.instance for entry in here}:
                return False, []
            beyond = [entry for entry in here if entry.instance.instance not in expected]
            doomed = [path for entry in beyond for path in self._remove(entry)]
            self._complete.add((node, ref.study, ref.series))
            return True, doomed

    def is_complete(self, node: str, study: str, series: str | None = None) -> bool:
        """Whether `find` gives all instances of the study, or of the series."""
        with self._lock:
            if not {(node, study, None), (node, study, series)} & self._complete:
                return False
            entries = [
                entry for (its, _), entry in self._studies.get((node, study), {}).items() if series in (None, its)
            ]
            return bool(entries) and not any(self._is_old(entry) for entry in entries)

    def pin(self, instance: SpooledInstance) -> Entry:
        """Keeps the file until `unpin`. Counts as a use. Raises NotSpooled."""
        with self._lock:
            entry = self._entries.get(instance.path)
            if entry is None or self._is_old(entry):
                raise NotSpooled("the instance is no longer in the spool")
            entry.pins += 1
            self._entries.move_to_end(instance.path)
            return entry

    def unpin(self, entry: Entry) -> list[Path]:
        with self._lock:
            entry.pins -= 1
            if not entry.retired or entry.pins:
                return []
            return self._let_go(entry.instance)

    def forget(self, node: str, study: str | None = None) -> list[Path]:
        """Takes out a study of a node, or all that came from the node."""
        with self._lock:
            self._note_forgotten(node, study)
            theirs = [
                e for e in self._entries.values() if e.instance.node == node and study in (None, e.instance.study)
            ]
            return [path for entry in theirs for path in self._remove(entry)]

    def _note_forgotten(self, node: str, study: str | None) -> None:
        self.position += 1
        self._forgotten[node, study] = self.position
        self._forgotten.move_to_end((node, study))
        if len(self._forgotten) > _FORGOTTEN_KEPT:
            self._unknown_before = self._forgotten.popitem(last=False)[1]

    def _is_forgotten(self, instance: SpooledInstance, since: int) -> bool:
        """Whether its study, or all of its node, was forgotten after that position; also when that is no longer known."""
        places = ((instance.node, instance.study), (instance.node, None))
        return max(self._unknown_before, *(self._forgotten.get(place, 0) for place in places)) > since

    def expire(self) -> list[Path]:
        """Takes out all that is too old."""
        with self._lock:
            old = [entry for entry in self._entries.values() if self._is_old(entry)]
            return [path for entry in old for path in self._remove(entry)]

    def shut(self) -> None:
        """Forgets all and takes nothing more."""
        with self._lock:
            self.max_bytes = 0
            self._entries.clear()
            self._studies.clear()
            self._complete.clear()
            self._leaving.clear()
            self.used = 0

    def _is_old(self, entry: Entry) -> bool:
        return self._clock() - entry.committed >= self.max_age

    def make_room(self, written: int, more: int) -> list[Path] | None:
        """Reserves `more` bytes and names the files that have to go first; None when there cannot be room.

        Among them are files that made room for somebody else and are not deleted yet: deleting them twice is harmless.
        """
        with self._lock:
            missing = self.used + more - self.max_bytes
            if written + more > self.max_bytes:
                return None
            idle = [entry for entry in self._entries.values() if not entry.pins] if missing > 0 else []
            if missing > sum(entry.instance.size for entry in idle):
                return None
            for entry in idle:
                if self.used + more <= self.max_bytes:
                    break
                self._remove(entry)
            self.used += more
            return list(self._leaving) if self.used + sum(self._leaving.values()) > self.max_bytes else []

    def gone(self, paths: Iterable[Path]) -> None:
        """These files are deleted: nobody has to wait for their room any more."""
        with self._lock:
            for path in paths:
                self._leaving.pop(path, None)

    def give_back(self, size: int) -> None:
        with self._lock:
            self.used = max(0, self.used - size)

    def admit(self, instance: SpooledInstance, since: int | None = None) -> list[Path]:
        """Takes a finished file into the index, in place of an earlier copy; names the files that have to go for it: itself
        where what it is of was forgotten after the position `since`."""
        with self._lock:
            if not self.max_bytes:
                return [instance.path]
            if since is not None and self._is_forgotten(instance, since):
                return self._let_go(instance)
            place = (instance.series, instance.instance)
            study = self._studies.setdefault((instance.node, instance.study), {})
            earlier = study.get(place)
            doomed = self._retire(earlier) if earlier is not None else []
            study[place] = self._entries[instance.path] = Entry(instance, self._clock())
            return doomed

    def _remove(self, entry: Entry) -> list[Path]:
        """Takes an instance, and with it the marks of its series and study, out of the index."""
        it = entry.instance
        study = self._studies[it.node, it.study]
        del study[it.series, it.instance]
        if not study:
            del self._studies[it.node, it.study]
        self._complete -= {(it.node, it.study, None), (it.node, it.study, it.series)}
        return self._retire(entry)

    def _retire(self, entry: Entry) -> list[Path]:
        """The file to delete now, or none while a reader has it: then its last reader deletes it."""
        del self._entries[entry.instance.path]
        entry.retired = True
        return [] if entry.pins else self._let_go(entry.instance)

    def _let_go(self, instance: SpooledInstance) -> list[Path]:
        """Its bytes may be reserved anew from now on, and written once the file is deleted."""
        self.give_back(instance.size)
        self._leaving[instance.path] = instance.size
        return [instance.path]
