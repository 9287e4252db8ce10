"""How a simulated PACS differs from a good one: the shortcomings and faults that DIMSE peers show in the field."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OUT_OF_RESOURCES, DOES_NOT_MATCH, UNABLE_TO_PROCESS = 0xA700, 0xA900, 0xC000


@dataclass(frozen=True)
class DimseOptions:
    """May be replaced while the simulator runs; what is negotiated, and a 'tcp' black hole, are fixed at its start.

    relational            answers SERIES and IMAGE queries that do not name the levels above (PS3.4 C.5.1.1)
    refusal               the status of a query that it does not answer: 0xA900, or dcmqrscp's 0xC000
    ignored_keys          keywords that it returns but does not match (rows come with status FF01)
    omitted_keys          keywords that it neither matches nor returns, and says nothing about (FF00)
    character_set         encodes its rows anew in this one; '' sends the file's bytes with the file's (0008,0005)
    omit_character_set    leaves (0008,0005) out of its rows
    max_results           stops after as many rows, with `max_results_status` (0xA700), or silently (0)
    no_get, no_move       does not accept those presentation contexts
    no_storage            nor those of storage: its AE title is for queries alone, instances go by another
    delay                 seconds before the first answer to an operation
    black_hole            'tcp' takes connections and says nothing; 'association' never answers an operation
    max_associations      more are rejected (local limit exceeded, transient)
    one_row_per_instance  repeats a study or series row for each of its instances, as pynetdicom's qrscp does
    foreign_study         answers a retrieve with another study than asked
    availability          Instance Availability (0008,0056) of all it has: ONLINE, NEARLINE, OFFLINE
    garbage               fills UIDs, dates and numbers of its rows with what their VR forbids
    failure               the status that every query and retrieve ends with at once, such as 0xA700; 0: none
    abort_after           aborts the association after as many instances of a retrieve
    calling_ae_titles     empty: any
    destinations          AE title -> (host, port) for C-MOVE
    """

    relational: bool = False
    refusal: int = DOES_NOT_MATCH
    ignored_keys: frozenset[str] = frozenset()
    omitted_keys: frozenset[str] = frozenset()
    character_set: str = ""
    omit_character_set: bool = False
    max_results: int | None = None
    max_results_status: int = OUT_OF_RESOURCES
    no_get: bool = False
    no_move: bool = False
    no_storage: bool = False
    delay: float = 0.0
    black_hole: Literal["", "tcp", "association"] = ""
    max_associations: int = 50
    one_row_per_instance: bool = False
    foreign_study: bool = False
    availability: str = "ONLINE"
    garbage: bool = False
    failure: int = 0
    abort_after: int | None = None
    calling_ae_titles: tuple[str, ...] = ()
    destinations: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
