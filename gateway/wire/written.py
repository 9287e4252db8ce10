"""The metadata of a series as JSON text, ready to leave: only the root of our addresses in it is put in last.

A viewer asks for a series again and again. What is kept of it is therefore what goes out: neither reading it nor writing it
anew is then left to do. The nodes' own addresses of bulk data, which callers never see, are kept beside the text.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.model.dataset import Dataset, text
from gateway.model.query import Ref
from gateway.model.vocabulary import INSTANCE_UID, RETRIEVE_URL, SERIES_UID, STUDY_UID

_HEAD, _TEXTS = b'{"head":', b',"texts":['


@dataclass(frozen=True, slots=True)
class Written:
    """Instances in order, each once: `text` is their JSON separated by commas, `lengths` says where each ends.

    `placeholder` stands in `text` for the root of our service. It is drawn by lot and told to nobody, so that no node can have
    written it. `addresses` are the node's own, by path of tags and item numbers, of each instance. `lacking` says
    what of the series is not here though its node has it; '' of a whole one.
    """

    placeholder: str
    uids: Sequence[str]
    lengths: Sequence[int]
    addresses: Sequence[dict[str, str]]
    digest: str
    text: bytes
    lacking: str = ""

    def __len__(self) -> int:
        return len(self.uids)

    def at(self, root: str) -> bytes:
        """The text with our addresses under this root."""
        return self.text.replace(self.placeholder.encode(), orjson.dumps(root)[1:-1])

    def each(self, root: str) -> Iterator[Dataset]:
        """The data sets one by one, each parsed when it is asked for, with our addresses under this root."""
        placeholder, ours, at = self.placeholder.encode(), orjson.dumps(root)[1:-1], 0
        for length in self.lengths:
            yield orjson.loads(self.text[at : at + length].replace(placeholder, ours))
            at += length + 1

    def datasets(self) -> list[Dataset]:
        """The data sets, for a view that changes them; their BulkDataURIs only say where such values are."""
        return list(orjson.loads(b"[" + self.text + b"]"))

    def address(self, uid: str, path: str) -> str | None:
        """The node's own address of a bulk data value; None where there is none."""
        return self.addresses[self.uids.index(uid)].get(path) if uid in self.uids else None

    def only(self, uids: Collection[str]) -> Written:
        """Just these instances, of those that are here."""
        if all(uid in uids for uid in self.uids):
            return self
        kept: list[tuple[str, bytes, dict[str, str]]] = []
        at = 0
        for uid, length, addresses in zip(self.uids, self.lengths, self.addresses, strict=True):
            if uid in uids:
                kept.append((uid, self.text[at : at + length], addresses))
            at += length + 1
        return _joined(self.placeholder, kept)

    @property
    def stored(self) -> dict[str, Any]:
        """As `read` takes it, once it is encoded."""
        head = {
            "placeholder": self.placeholder,
            "uids": self.uids,
            "lengths": self.lengths,
            "addresses": self.addresses,
            "digest": self.digest,
            "lacking": self.lacking,
        }
        return {"head": head, "texts": [orjson.Fragment(self.text)] if self.uids else []}


class Writing:
    """Metadata with our addresses, without attributes that have no value; the first of each instance. Each data set is written
    when it comes, while it is at hand.

    Empty attributes are left out because viewers stumble over them (OHIF 3.13).
    """

    def __init__(self) -> None:
        self._placeholder = secrets.token_hex(16)
        self._found: dict[str, tuple[str, bytes, dict[str, str]]] = {}

    @property
    def uids(self) -> Collection[str]:
        """The SOP Instance UIDs of what has come."""
        return self._found.keys()

    def add(self, dataset: Dataset) -> None:
        uid = text(dataset, INSTANCE_UID)
        if uid not in self._found:
            addresses: dict[str, str] = {}
            self._found[uid] = uid, orjson.dumps(with_addresses(dataset, self._placeholder, addresses)), addresses

    def whole(self) -> Written:
        return _joined(self._placeholder, list(self._found.values()))


def write(datasets: Iterable[Dataset]) -> Written:
    """The metadata of instances that are there already."""
    writing = Writing()
    for dataset in datasets:
        writing.add(dataset)
    return writing.whole()


def _joined(placeholder: str, found: Sequence[tuple[str, bytes, dict[str, str]]]) -> Written:
    texts = [text_ for _, text_, _ in found]
    whole = b",".join(texts)
    digest = hashlib.sha256(whole.replace(placeholder.encode(), b"")).hexdigest()
    uids, addresses = [uid for uid, _, _ in found], [given for _, _, given in found]
    return Written(placeholder, uids, list(map(len, texts)), addresses, digest, whole)


def read(encoded: bytes) -> Written:
    """What `stored` gave, from its JSON. Raises ValueError for anything else.

    The text is cut out, not parsed: in JSON no string can hold the bytes that it begins after, since quotes are escaped.
    """
    begins = encoded.index(_TEXTS)
    head = orjson.loads(encoded[len(_HEAD) : begins])
    try:
        return Written(**head, text=encoded[begins + len(_TEXTS) : -2])
    except TypeError:
        raise ValueError("no written metadata") from None


def with_addresses(dataset: Dataset, root: str, theirs: dict[str, str] | None = None) -> Dataset:
    """An instance's metadata with our addresses for its bulk data, and without attributes that have no value; `theirs`
    gets the addresses that were there."""
    ref = Ref(text(dataset, STUDY_UID), text(dataset, SERIES_UID), text(dataset, INSTANCE_UID))
    address = f"{root}/{ref.path}"
    given = _addressed(dataset, f"{address}/bulkdata/", "", {} if theirs is None else theirs)
    given[RETRIEVE_URL] = {"vr": "UR", "Value": [address]}
    return given


def _addressed(dataset: Dataset, prefix: str, path: str, theirs: dict[str, str]) -> Dataset:
    given = dict(dataset)
    for tag in [tag for tag, attribute in dataset.items() if "Value" not in attribute or attribute["vr"] == "SQ"]:
        attribute = given[tag]
        if "BulkDataURI" in attribute:
            here = f"{path}{tag}"
            theirs[here] = str(attribute["BulkDataURI"])
            given[tag] = {"vr": attribute["vr"], "BulkDataURI": prefix + here}
        elif items := [
            _addressed(item, prefix, f"{path}{tag}.{number}.", theirs)
            for number, item in enumerate(attribute.get("Value", []), 1)
        ]:
            given[tag] = {"vr": "SQ", "Value": items}
        elif "InlineBinary" not in attribute:
            del given[tag]
    return given
