"""Which studies an export has given already: known by the UID and by whose they are.

A UID may be another patient's as well, whose study lies years, and so pages, behind. Neither is left out for the other, and
they do not have one id.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from gateway.federation.merge import Domains
from gateway.federation.namesakes import same_in_domains, told_apart
from gateway.model.answer import Found
from gateway.model.patient import PatientKey
from gateway.store.exports import HEAD, MARK

_ISSUER = HEAD + 3


def mark(type_: str, identifier: str) -> bytes:
    """Stands for the line of a resource that is known by its id alone."""
    return _digest(f"{type_}/{identifier}", MARK)


def marks_of(found: Found) -> list[bytes]:
    """What stands for a study: one mark for each identifier of its patient."""
    return [_mark(found, key) for key in sorted(found.patients)]


def _mark(found: Found, key: PatientKey) -> bytes:
    """Made of the UID, the issuer, and the identifier: that of a patient whom nobody named is his node's."""
    whose = key.id if key.is_named else f"|{found.origin}"
    uid, issuer = _digest(f"ImagingStudy/{found.study}", HEAD), _digest(key.issuer, _ISSUER - HEAD)
    return uid + issuer + _digest(f"{len(key.issuer)}|{key.issuer}|{whose}", MARK - _ISSUER)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def left(items: Sequence[Found], given: Iterable[bytes], domains: Domains) -> list[Found]:
    """Those of the studies that are not given yet; one whose UID was given as another patient's has an id that tells it apart."""
    by_uid: dict[bytes, set[bytes]] = defaultdict(set)
    for one in given:
        by_uid[one[:HEAD]].add(one)
    some = []
    for found in items:
        own = marks_of(found)
        theirs = by_uid[own[0][:HEAD]]
        if theirs and _is_same(found, own, theirs, domains):
            continue
        some.append(told_apart(found) if theirs else found)
        theirs.update(own)
    return some


def _is_same(found: Found, own: Sequence[bytes], theirs: Collection[bytes], domains: Domains) -> bool:
    """As `merge` joins rows: by an identifier that both have, or that links them, unless an issuer gives them two."""
    issuers = {one[:_ISSUER] for one in theirs}
    if any(one[:_ISSUER] in issuers and one not in theirs for one in own):
        return False
    return any(_mark(found, key) in theirs for key in (*found.known_as, *same_in_domains(found, domains)))
