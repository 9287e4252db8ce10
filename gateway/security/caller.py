"""Who is asking: what a verified token says, or the open demo on loopback."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """One authenticated caller. `scopes` are SMART scopes as text; `purpose` is the purpose of use, '' for none.

    `subject` and `client` are the token's sub and client_id; `nodes` narrows the nodes it may use, None does not.
    """

    subject: str = "anonymous"
    client: str = ""
    scopes: frozenset[str] = field(default_factory=frozenset)
    purpose: str = ""
    nodes: frozenset[str] | None = None
    is_open: bool = False


OPEN_CALLER = Caller(is_open=True)
