"""Instance Availability (0008,0056): where a node's studies are, and what that means for whoever waits for the first byte."""

from __future__ import annotations

from dataclasses import replace

from gateway.errors import NodeBusy, NodeError, NodeTimeout
from gateway.federation.nodes import NodeConfig
from gateway.model.dataset import attribute, text
from gateway.model.query import Query
from gateway.model.study import Row
from gateway.model.vocabulary import INSTANCE_AVAILABILITY

_ASK_AGAIN = 60.0
_LATE = {
    "NEARLINE": "is fetching the study from nearline storage; ask again later",
    "OFFLINE": "keeps the study offline: someone has to bring it; ask again later",
}


def declared(row: Row, availability: str) -> Row:
    """The row, and those below it, with what the node file says of the node's studies; '' leaves it to the node."""
    if not availability:
        return row
    attributes = {**row.attributes, INSTANCE_AVAILABILITY: attribute(INSTANCE_AVAILABILITY, [availability])}
    children = tuple(declared(child, availability) for child in row.children)
    return replace(row, attributes=attributes, children=children)


def undeclared(query: Query, availability: str) -> Query:
    """The query without the key that the node would answer otherwise than the node file does: it is matched here."""
    if not availability:
        return query
    return replace(query, matches=tuple(one for one in query.matches if one.path != (INSTANCE_AVAILABILITY,)))


def first_byte_deadline(owner: Row, config: NodeConfig) -> float:
    """Seconds that the node may take until the first byte of the study that `owner` is the row of."""
    return config.nearline_first_byte_deadline if _is_late(owner) else config.first_byte_deadline


def late(owner: Row, config: NodeConfig) -> NodeError:
    """What it is called when that time is over: a study on its way from a slow store is not a node gone silent."""
    if _is_late(owner):
        return NodeBusy(config.id, _LATE[text(owner.attributes, INSTANCE_AVAILABILITY)], retry_after=_ASK_AGAIN)
    return NodeTimeout(config.id, f"went silent for {config.first_byte_deadline:g} s")


def _is_late(owner: Row) -> bool:
    return text(owner.attributes, INSTANCE_AVAILABILITY) in _LATE
