"""A searchset Bundle: matches, what was included, an outcome for what is missing or was ignored, and the links around it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from gateway.edge import problems
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.periods import instant
from gateway.edge.fhir.request import FhirRequest
from gateway.model.answer import Issue

NOT_OF_THE_SEARCH = frozenset(
    {
        "_count",
        "_format",
        "_pretty",
        "_summary",
        "_elements",
        "_include",
        "_include:iterate",
        "_revinclude",
        "_total",
        "_profile",
    }
)
"""Parameters that may change between the pages of one walk."""


@dataclass(slots=True)
class Searchset:
    """One page of a search for `kind`. `total` None leaves it out; `cursor` is the one that the page was asked for with, `next`
    the one behind it, '' for none.

    `updated` is the moment (ms since the epoch) before which everything that the search finds had been recorded.
    `included` are by reference; `used` are the parameters that the links repeat.
    """

    kind: str
    used: Sequence[tuple[str, str]]
    matches: Sequence[Resource]
    included: Mapping[str, Resource] = field(default_factory=dict)
    outcome: Sequence[Mapping[str, object]] = ()
    total: int | None = None
    cursor: str = ""
    next: str = ""
    updated: int | None = None

    def bundle(self, asked: FhirRequest) -> Resource:
        """The Bundle; elements that would be empty are left out."""
        bundle: Resource = {"resourceType": "Bundle", "type": "searchset"}
        if self.updated is not None:
            bundle["meta"] = {"lastUpdated": instant(self.updated)}
        if self.total is not None:
            bundle["total"] = self.total
        bundle["link"] = [{"relation": "self", "url": self._url(asked, self.cursor)}]
        if self.next:
            bundle["link"].append({"relation": "next", "url": self._url(asked, self.next)})
        entries = [_entry(asked, f"{self.kind}/{one['id']}", one, "match") for one in self.matches]
        entries += [_entry(asked, reference, one, "include") for reference, one in self.included.items()]
        if self.outcome:
            outcome = {"resourceType": "OperationOutcome", "issue": list(self.outcome)}
            entries.append({"resource": outcome, "search": {"mode": "outcome"}})
        if entries:
            bundle["entry"] = entries
        return bundle

    def _url(self, asked: FhirRequest, cursor: str) -> str:
        pairs = [*self.used, ("_cursor", cursor)] if cursor else self.used
        query = "&".join(f"{quote(name, safe=':.')}={quote(value, safe=':|,/.-_')}" for name, value in pairs)
        return f"{asked.root}/{self.kind}" + (f"?{query}" if query else "")


def _entry(asked: FhirRequest, reference: str, resource: Resource, mode: str) -> Resource:
    return {"fullUrl": f"{asked.root}/{reference}", "resource": resource, "search": {"mode": mode}}


def outcome_of(issues: Iterable[Issue], ignored: Iterable[str]) -> list[Mapping[str, object]]:
    """What a reader of the page has to know: nodes that failed, parameters that were left out."""
    left_out = "the search parameter '{}' is not supported and was ignored"
    return [
        *(problems.issue_of_node(issue) for issue in issues),
        *(
            problems.outcome_issue("warning", "not-supported", "GW101", left_out.format(name), name)
            for name in dict.fromkeys(ignored)
        ),
    ]


def digest(asked: FhirRequest, kind: str, used: Iterable[tuple[str, str]]) -> str:
    """Names the search that a cursor belongs to: its parameters whatever their order, its nodes and its caller's view."""
    parameters = sorted(pair for pair in used if pair[0] not in NOT_OF_THE_SEARCH)
    view = asked.context.pipeline.views.of(asked.context.caller).digest
    return hashlib.sha256(repr((kind, parameters, asked.context.nodes, view)).encode()).hexdigest()[:16]
