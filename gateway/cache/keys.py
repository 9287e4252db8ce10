"""Names the entries of the cache: the same question has the same key, whoever asks and in whatever order."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from typing import Any

import orjson

from gateway.model.query import Operator
from gateway.model.seam import NativeMatch, NativeQuery

PREFIX = "gw:1"
FEDERATED = "_federated"
"""Stands for the node in keys of answers that were made from several nodes; any purge of a node drops these too."""

SEARCHES = ("find", "location")
"""The kinds of entries that are a node's answers to searches."""

_SAFE = re.compile(r"[A-Za-z0-9._-]{1,64}(@[0-9a-f]{1,64})?")


def key(kind: str, node_digest: str, *parts: Any) -> str:
    """`gw:1:<kind>:<node>:<sha256 of the parts>`; parts are JSON values, dataclasses, sets or bytes.

    The parts name the whole question. Where the answer depends on who asks, one of them is the digest of the effective
    view (nodes, purpose, project); a token never is. `node_digest` is a node id, or what `node_digest()` makes of it.
    """
    return _key(kind, node_digest, _digest(parts))


def _key(kind: str, node_digest: str, digest: str) -> str:
    return f"{PREFIX}:{kind}:{_segment(node_digest)}:{digest}"


def _digest(parts: tuple[Any, ...]) -> str:
    return hashlib.sha256(canonical(parts)).hexdigest()


def federated_key(kind: str, view_digest: str, *parts: Any) -> str:
    """The key of an answer made from several nodes: it depends on who asks, so the digest of the effective view is in it."""
    return key(kind, FEDERATED, view_digest, *parts)


def query_key(kind: str, node_digest: str, query: NativeQuery, *parts: str) -> str:
    """The key of one node's answer to one NativeQuery; matches, listed values and return paths are unordered."""
    return _key(kind, node_digest, _digest_of(query, parts))


@lru_cache(512)
def _digest_of(query: NativeQuery, parts: tuple[str, ...]) -> str:
    """Worked out once for all nodes that are asked the same."""
    return _digest((_plain_query(query), *parts))


def node_digest(node: str, configuration: Any) -> str:
    """The node id and a digest of whatever in its configuration shapes its answers: a change of it is a new start."""
    return f"{_segment(node)}@{hashlib.sha256(canonical(configuration)).hexdigest()[:12]}"


def node_patterns(node: str) -> tuple[str, ...]:
    """The SCAN patterns that find every entry of a node, whatever its configuration, and every federated one."""
    segment = _segment(node)
    return f"{PREFIX}:*:{segment}:*", f"{PREFIX}:*:{segment}@*:*", f"{PREFIX}:*:{FEDERATED}:*"


def search_patterns(node: str) -> tuple[str, ...]:
    """The SCAN patterns that find a node's answers to searches, where a study is among them; not its metadata."""
    segment = _segment(node)
    return tuple(f"{PREFIX}:{kind}:{segment}{rest}" for kind in SEARCHES for rest in (":*", "@*:*"))


def is_search_of(key_: str, node: str) -> bool:
    """Whether a purge of the node's searches drops this key: the same decision as `search_patterns`."""
    kind, segment = key_.split(":")[2:4] if key_.count(":") >= 4 else ("", "")
    return kind in SEARCHES and segment.partition("@")[0] == _segment(node)


def is_of_node(key_: str, node: str) -> bool:
    """Whether a purge of the node drops this key: the same decision as `node_patterns`, for one key at hand."""
    segment = key_.split(":")[3] if key_.count(":") >= 4 else ""
    return segment.partition("@")[0] == _segment(node) or segment in (_segment(node), FEDERATED)


def canonical(value: Any) -> bytes:
    """One byte string per value: sorted keys, sets in order. Raises TypeError for what has no JSON form."""
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # orjson refuses lone surrogates and integers beyond 64 bits; a question that holds one still needs a key.
        return json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(canonical(item).decode() for item in value)}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a cache key")


def _plain_query(query: NativeQuery) -> dict[str, Any]:
    """Every field by its name, so that one added to NativeQuery later is part of the key at once."""
    plain = {field.name: getattr(query, field.name) for field in fields(query)}
    plain["match"] = sorted({canonical(_plain_match(match)).decode() for match in query.match})
    plain["return_"] = sorted(set(query.return_))
    return plain


def _plain_match(match: NativeMatch) -> dict[str, Any]:
    plain = {field.name: getattr(match, field.name) for field in fields(match)}
    if match.operator is Operator.LIST:
        plain["values"] = sorted(set(match.values))
    return plain


def _segment(node: str) -> str:
    """The node id where it has no character that means something to a key or to a SCAN pattern, else its digest."""
    return node if _SAFE.fullmatch(node) else hashlib.sha256(node.encode("utf-8", "surrogatepass")).hexdigest()[:32]
