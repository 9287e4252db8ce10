"""The node file, the mapping files, and the certificates and keys that they name, as they are on disk: read, watched, and kept.

Where several workers share a directory each of them keeps there what it has put in force, so that one that is started later
begins with the same nodes, whatever has become of the files meanwhile.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import InvalidMapping, SettingsError
from gateway.federation import nodes as node_file
from gateway.federation.nodes import Connection, NodeConfig, NodeFile
from gateway.mapping.load import load_all
from gateway.mapping.schema import Mapping as FormatMapping
from gateway.telemetry import log

Formats = Mapping[str, FormatMapping]
Reading = tuple[NodeFile, Formats]
Stamp = tuple[int, int, int]
_NOT_THERE: Stamp = (0, 0, 0)
_NODES, _MAPPINGS, _CURRENT = "nodes.toml", "mappings", "current"


@dataclass(frozen=True, slots=True)
class Files:
    """Where a node file and mapping files lie."""

    nodes: Path
    mappings: Path | None

    def read(self, given: NodeFile | None = None) -> Reading:
        """Both, checked; with a node file that is `given` the mappings alone. Raises SettingsError and InvalidMapping."""
        return given or node_file.read(self.nodes), load_all([self.mappings] if self.mappings else [])


class Source:
    """The files as they are on disk; or one node file that is `given`, and never changes. `shared` is a private directory of all
    workers of one gateway; without `follows` a worker begins with what the first one began with."""

    def __init__(
        self,
        nodes: Path,
        mappings: Path | None,
        given: NodeFile | None = None,
        *,
        shared: Path | None = None,
        follows: bool = True,
    ) -> None:
        self.nodes = nodes
        self.is_on_disk = given is None
        self.refused = ""
        self._files = Files(nodes, mappings)
        self._given = given
        self._shared, self._follows = shared, follows
        self._is_as_read = False
        self._named: frozenset[Path] = frozenset()
        self._seen: dict[Path, Stamp] = {}
        self._unsettled: dict[Path, Stamp] = {}

    def first(self) -> Reading:
        """What a process begins with: as `read`, or what other workers have in force where that cannot be read (`refused` says why)
        or is not to be. Raises as `read` where there is nothing in force."""
        in_force = _in_force(self._shared) if self._shared else None
        if in_force is None:
            return self.read()
        if self._follows:
            try:
                return self.read()
            except (SettingsError, InvalidMapping) as error:
                self.refuse(error.detail.splitlines()[0])
        self._is_as_read = False
        return self._noted(*in_force.read())

    def read(self) -> Reading:
        """The files, checked. Raises SettingsError and InvalidMapping, which name the file and the key and no value."""
        self._seen, self._is_as_read = self._stamps(), True
        return self._noted(*self._files.read(self._given))

    def _noted(self, file: NodeFile, formats: Formats) -> Reading:
        self._named = frozenset(path for node in file.enabled for one in connections(node) for path in files_of(one))
        self._seen = {path: self._seen.get(path) or stamp(path) for path in self._watched()}
        return file, formats

    def refuse(self, reason: str) -> None:
        """What is on disk is not what is in force."""
        self.refused = reason.replace(str(self.nodes), self.nodes.name)
        log().error("node file refused", file=self.nodes.name, reason=self.refused)

    def in_force(self) -> None:
        """What was given last is in force now: other workers may begin with it, where it is what lies on disk."""
        if not self._is_as_read:
            return
        self.refused = ""
        if self._shared and self.is_on_disk and self._stamps() == self._seen:
            try:
                _keep(self._files, self._shared)
            except OSError as error:
                log().warning("node file not kept", file=self.nodes.name, reason=type(error).__name__)

    def has_changed(self) -> bool:
        """Whether there is something else than what was read. A file that is written in place must have come to rest since
        the last look; one that was renamed into place is whole."""
        now, before = self._stamps(), self._unsettled
        if now == self._seen:
            return False
        self._unsettled = now
        written = (path for path in now if path in self._seen and now[path] != self._seen[path])
        return now == before or all(now[path][0] not in (0, self._seen[path][0]) for path in written)

    def _stamps(self) -> dict[Path, Stamp]:
        return {path: stamp(path) for path in self._watched()}

    def _watched(self) -> list[Path]:
        mappings = self._files.mappings
        return [self.nodes, *(_files_in(mappings) if mappings else ()), *self._named]


def _keep(files: Files, shared: Path) -> None:
    """Copies of the files take the place of those before, all at once. Raises OSError."""
    copy = Path(tempfile.mkdtemp(prefix="nodes-", dir=shared))
    shutil.copyfile(files.nodes, copy / _NODES)
    if files.mappings:
        (copy / _MAPPINGS).mkdir()
        for path in _files_in(files.mappings):
            shutil.copyfile(path, copy / _MAPPINGS / path.name)
    current, new = shared / _CURRENT, copy / _CURRENT
    before = current.resolve() if current.is_symlink() else None
    new.symlink_to(copy)
    os.replace(new, current)
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _in_force(shared: Path) -> Files | None:
    """Copies of what some worker has put in force; None before the first one has."""
    current = shared / _CURRENT
    if not current.is_symlink():
        return None
    copy = current.resolve()
    mappings = copy / _MAPPINGS
    return Files(copy / _NODES, mappings if mappings.is_dir() else None)


def connections(config: NodeConfig) -> list[Connection]:
    """Of a node: where it is searched, and where its pixels are."""
    return [config.connection, *([config.retrieve.connection] if config.retrieve else [])]


def files_of(connection: Connection) -> Iterable[Path]:
    """The certificates and keys that it names."""
    tls, auth = getattr(connection, "tls", None), getattr(connection, "auth", None)
    if tls is not None:
        yield from filter(None, (tls.ca_bundle, tls.certificate, tls.key))
    key = getattr(auth, "private_key", None)
    if isinstance(key, Path):
        yield key


def _files_in(mappings: Path) -> list[Path]:
    """None where the directory cannot be looked into now; whoever reads it says so."""
    try:
        return sorted(mappings.glob("*.toml"))
    except OSError:
        return []


def stamp(path: Path) -> Stamp:
    """Another one when the file is another one, was written, or has other rights."""
    try:
        status = path.stat()
    except OSError:
        return _NOT_THERE
    return status.st_ino, status.st_ctime_ns, status.st_size
