"""Whether a caller may: the scopes of a request, and the nodes that serve a caller with its purpose of use."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gateway.errors import Forbidden
from gateway.security.caller import Caller
from gateway.security.scopes import allows, needed

_VERBS = {"r": "reading", "s": "searching", "c": "storing"}


@dataclass(frozen=True, slots=True)
class Policy:
    """Decides on what a caller's token says and what the node file asks for; it keeps nothing."""

    def require(self, caller: Caller, resource: str, action: str) -> None:
        """Raises Forbidden naming the missing scope. `action` is a SMART permission: 'r', 's' or 'c'.

        DICOMweb uses the scopes of ImagingStudy. The open caller of a loopback gateway needs none.
        """
        if caller.is_open or allows(caller.scopes, resource, action):
            return
        raise Forbidden(
            f"{_VERBS.get(action, 'changing')} {resource} needs the scope {needed(resource, action)} "
            "(or user/, .read, .*); patient/ scopes and scopes with a query grant nothing on a federated gateway"
        )

    def may_use(self, caller: Caller, node_id: str, purposes: Collection[str]) -> bool:
        """Whether a node may be asked for this caller.

        A node that lists `purposes` of use is asked only for one of these, whoever the caller is: it is the hospital's
        own condition. The open caller of a loopback gateway has its purpose from a setting.
        """
        if caller.nodes is not None and node_id not in caller.nodes:
            return False
        return not purposes or caller.purpose in purposes

    def require_nodes(self, caller: Caller, nodes: Collection[str], named: Collection[str] = ()) -> None:
        """Raises Forbidden when no node is left to ask, or one that was asked for by name is not among those left; which of them
        would want what is not told."""
        if nodes and set(named).issubset(nodes):
            return
        reasons = []
        if caller.nodes is not None:
            reasons.append("the token allows some nodes only")
        if caller.purpose:
            reasons.append("the nodes may not accept its purpose of use")
        else:
            reasons.append("no single purpose of use is stated, and the nodes may require one")
        what = "a node is named that this caller may not ask" if nodes else "no node is left that this caller may ask"
        raise Forbidden(f"{what}: {'; '.join(reasons)}")
