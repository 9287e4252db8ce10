"""JSON or XML: which of the two a caller of a search or of metadata gets (PS3.18 8.7.3), and the XML one as a body."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from starlette.requests import Request

from gateway.edge import negotiation
from gateway.edge.negotiation import DICOM_JSON, JSON, MULTIPART
from gateway.errors import NotAcceptable
from gateway.model.dataset import Dataset
from gateway.wire import dicomxml, multipart
from gateway.wire.media import MediaType, preferred

DICOM_XML = dicomxml.MEDIA_TYPE


@dataclass(frozen=True, slots=True)
class Representation:
    """One way to write data sets: `type` is that of the whole, `inner` that of the parts where it has parts."""

    type: str
    inner: str = ""

    @property
    def is_xml(self) -> bool:
        return self.type != DICOM_JSON and self.type != JSON

    @property
    def name(self) -> str:
        """As an Accept header says it."""
        return f'{self.type}; type="{self.inner}"' if self.inner else self.type

    @property
    def offer(self) -> MediaType:
        type_, _, subtype = self.type.partition("/")
        return MediaType(type_, subtype, {"type": self.inner} if self.inner else {})


IN_JSON = Representation(DICOM_JSON)
IN_PLAIN_JSON = Representation(JSON)
IN_XML = Representation(MULTIPART, DICOM_XML)
IN_XML_ALONE = Representation(DICOM_XML)
OFFERED = (IN_JSON, IN_PLAIN_JSON, IN_XML)
"""Of any search and any metadata, the default first; `IN_XML_ALONE` of one instance besides."""


def chosen(request: Request, *, strict: bool, alone: bool = False) -> Representation:
    """The representation that the caller likes best. `alone` is where there is one data set by nature, which XML can then
    be without multipart. Raises NotAcceptable, and InvalidQuery for a character set that we do not write."""
    negotiation.check_charset(request)
    offered = (*OFFERED, IN_XML_ALONE) if alone else OFFERED
    best = preferred(negotiation.ranges(request, strict=strict), [one.offer for one in offered])
    if best is None:
        names = " or ".join(one.name for one in OFFERED if one is not IN_PLAIN_JSON)
        raise NotAcceptable(f"this resource is available as {names}", parameter="Accept")
    return offered[best]


def xml_whole(datasets: Iterable[Dataset]) -> tuple[bytes, str]:
    """A multipart body with one document for each data set, and its Content-Type. None gives a body without a part."""
    documents = [dicomxml.write(dataset) for dataset in datasets]
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document)
    boundary = boundary_of(digest.digest())
    body = b"".join(xml_parts(boundary, ((document, "") for document in documents)))
    return body, multipart.content_type(boundary, DICOM_XML)


def boundary_of(identity: bytes) -> str:
    """A boundary that is the same for the same content, so that the same answer has the same bytes and the same ETag; no
    content holds a digest of itself."""
    return f"gateway-{hashlib.sha256(b'boundary' + identity).hexdigest()[:32]}"


def xml_parts(boundary: str, documents: Iterable[tuple[bytes, str]]) -> Iterator[bytes]:
    """The pieces of the body, one for each document; with each goes its own address, '' for none."""
    is_first = True
    for document, location in documents:
        headers = {"Content-Type": DICOM_XML, **({"Content-Location": location} if location else {})}
        yield multipart.part_head(boundary, headers, first=is_first) + document
        is_first = False
    closing = multipart.closing(boundary)
    yield closing.lstrip() if is_first else closing
