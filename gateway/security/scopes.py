"""What a token's scopes allow: SMART v1, SMART v2 and the European dialect, all read as the five permissions c r u d s.

What counts as what (SMART App Launch 2 "Scopes", EU Health Data API "authorization"):
- v1: `.read` is rs, `.write` is cud, `.*` is cruds. In the European dialect `.read` and `.search` stand side by side; a
  bare `.read` is still rs, as in v1, because nothing in a token tells the dialects apart.
- v2: any of c r u d s, each once and in that order. A scope with a query (`.rs?modality=MG`) means less than it names,
  and the gateway does not narrow its answers by it: it grants nothing.
- `patient/` grants nothing: it means the patient of a launch, and a federated search has none. `user/`, `system/` do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_FORM = re.compile(r"(?:user|system)/(\*|[A-Z][A-Za-z]*)\.(read|write|search|\*|(?=[cruds])c?r?u?d?s?)")
_WORDS = {"read": "rs", "write": "cud", "search": "s", "*": "cruds"}


@lru_cache(maxsize=1024)
def grant(scope: str) -> tuple[str, str] | None:
    """(resource or '*', the permissions it grants among 'cruds'); None for a scope that grants nothing here."""
    form = _FORM.fullmatch(scope)
    if form is None:
        return None
    resource, permissions = form.groups()
    return resource, _WORDS.get(permissions, permissions)


def allows(scopes: Iterable[str], resource: str, action: str) -> bool:
    """Whether any of the scopes grants one permission ('r', 's' or 'c') on a resource type."""
    granted = filter(None, map(grant, scopes))
    return any(named in ("*", resource) and action in permissions for named, permissions in granted)


def needed(resource: str, action: str) -> str:
    """The least scope that would do, in the words of SMART v2."""
    return f"system/{resource}.{action}"


def supported(resources: Iterable[str], stored: Iterable[str] = ()) -> list[str]:
    """The scopes to tell clients about, in both versions of SMART: reading and searching each resource, storing some."""
    granted = [(resource, what) for resource in resources for what in ("rs", "read")]
    granted += [(resource, what) for resource in stored for what in ("c", "write")]
    return [f"{who}/{resource}.{what}" for who in ("system", "user") for resource, what in granted]
