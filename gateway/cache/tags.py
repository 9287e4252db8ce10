"""Names what a kept answer mentions, so that a purge of a study or of a patient finds it and nobody can read whose it is.

A tag is the start of a plain (unkeyed) SHA-256: every replica and the command line make the same one without a secret. It hides
identifiers from whoever looks at key names; it does not withstand one who tries out all numbers of a hospital he knows.
"""

from __future__ import annotations

import hashlib

from gateway.cache.keys import PREFIX

Tag = bytes
ANY_ISSUER = ""
"""Stands for the issuer where a question names a patient's id and the answer may be any bearer's."""
LENGTH = 8
"""Bytes of a tag. Two things of one tag would only be purged together."""


def study_tag(uid: str) -> Tag:
    """The tag of a study, by the UID that the nodes know it by."""
    return _tag("study", uid)


def patient_tag(issuer: str, identifier: str) -> Tag:
    """The tag of a patient, who is (issuer, id)."""
    return _tag("patient", issuer, identifier)


def index_key(tag: Tag) -> str:
    """Where Redis lists the keys of the entries that bear the tag."""
    return f"{PREFIX}:tag:{tag.hex()}"


def _tag(*parts: str) -> Tag:
    told = "\0".join(part.strip() for part in parts)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:LENGTH]
