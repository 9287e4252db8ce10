"""The adapters under contract: each on its simulator and on every real peer, holding the studies of the shelf."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.adapters.dicomweb import DicomwebAdapter
from gateway.adapters.dimse import DimseAdapter
from gateway.adapters.fhir import FhirAdapter
from gateway.adapters.files import FilesAdapter
from gateway.adapters.http.client import HttpClient, Timeouts
from gateway.mapping.ask import Asker
from gateway.mapping.load import load_all
from gateway.mapping.read import Reader
from gateway.model.query import Match, Query
from gateway.model.seam import NativeQuery, Record, Report
from gateway.model.study import Row
from gateway.model.vocabulary import Level

MAPPINGS = load_all()
ISSUER = "ISSUER"


@dataclass(frozen=True)
class Limits:
    """Seconds, and how many connections or associations at a time."""

    deadline: float = 20.0
    connections: int = 4

    @property
    def timeouts(self) -> Timeouts:
        return Timeouts(self.deadline, self.deadline, self.deadline, self.deadline)


@dataclass(frozen=True)
class Subject:
    """One adapter on one peer. `make` only constructs. `keeps_bytes`: what it gives are the stored bytes."""

    name: str
    make: Callable[[Limits], Any]
    mapping: str = "dicom"
    keeps_bytes: bool = False
    port: int = 0
    asker: Asker = field(init=False)
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        mapping = MAPPINGS[self.mapping]
        object.__setattr__(self, "asker", Asker(mapping, ISSUER))
        object.__setattr__(self, "reader", Reader(mapping, "node", ISSUER))

    def open(self, **limits: Any) -> AbstractAsyncContextManager[Any]:
        return opened(self.make(Limits(**limits)))

    def native(self, query: Query, limit: int | None = None) -> NativeQuery:
        native = self.asker.ask(query, limit)
        assert native is not None
        return native

    async def ask(
        self, adapter: Any, level: Level, *matches: Match, limit: int | None = None, **asked: Any
    ) -> tuple[list[Row], Report]:
        """Every row of a search, in the model, with the report that ended it."""
        query = Query(level, matches, **asked)
        items = [item async for item in adapter.find(self.native(query, limit))]
        assert isinstance(items[-1], Report), "a search ends with its report"
        assert not any(isinstance(item, Report) for item in items[:-1])
        return [row for record in items[:-1] for row in self.rows(record, query)], items[-1]

    def rows(self, record: Record, query: Query) -> tuple[Row, ...]:
        return self.reader.rows(record, query.level, study=query.study or "", series=query.series or "")


@asynccontextmanager
async def opened(adapter: Any) -> AsyncIterator[Any]:
    await adapter.open()
    try:
        yield adapter
    finally:
        await adapter.close()


def over_files(directory: Path) -> Callable[[Limits], FilesAdapter]:
    return lambda limits: FilesAdapter("node", directory=directory)


def over_dimse(port: int, ae_title: str) -> Callable[[Limits], DimseAdapter]:
    return lambda limits: DimseAdapter(
        "node",
        host="127.0.0.1",
        port=port,
        called_ae_title=ae_title,
        max_associations=limits.connections,
        connect_timeout=limits.deadline,
        response_timeout=limits.deadline,
        permit_timeout=limits.deadline,
    )


def over_http(url: str, limits: Limits, *allow: str) -> HttpClient:
    return HttpClient("node", base_url=url, timeouts=limits.timeouts, max_connections=limits.connections, allow=allow)


def over_dicomweb(url: str) -> Callable[[Limits], DicomwebAdapter]:
    return lambda limits: DicomwebAdapter("node", http=over_http(url, limits))


def over_fhir(url: str, version: Any, *allow: str) -> Callable[[Limits], FhirAdapter]:
    return lambda limits: FhirAdapter("node", http=over_http(url, limits, *allow), version=version)


FHIR = {"STU3": "fhir-stu3", "R4": "fhir-r4", "R4B": "fhir-r4", "R5": "fhir-r5", "mii": "mii-bildgebung"}
KINDS = {"files": FilesAdapter, "dicomweb": DicomwebAdapter, "dimse": DimseAdapter, "fhir": FhirAdapter}
SIMULATED = ["files", "dicomweb-simulator", "dimse-simulator", *(f"fhir-simulator-{version}" for version in FHIR)]
REAL = ["dicomweb-Orthanc", "dimse-Orthanc", "dimse-dcmqrscp", "fhir-sekmet"]


def capable(capabilities: Iterable[type]) -> Iterator[str]:
    """The names of the subjects whose adapter has all of the capabilities."""
    for name in (*SIMULATED, *REAL):
        if all(issubclass(KINDS[name.partition("-")[0]], capability) for capability in capabilities):
            yield name
