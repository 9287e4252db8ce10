"""What the demo says of itself once it is up: where things are, what is planted, and five commands that work."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.cli.demonodes import DOWN
from gateway.simulators.corpus import Corpus

_WIDTH = 27


@dataclass(frozen=True, slots=True)
class Try:
    """A command for a shell, and what it shows."""

    shows: str
    command: str


def text(base: str, corpus: Corpus, node_file: Path, audit: Path | None) -> str:
    """The whole guide; `base` is the gateway's URL without a slash at the end."""
    parts = [
        f"The imaging gateway is up over {len(corpus.nodes)} hospitals at {base}/",
        _list(_places(base, node_file, audit)),
        "Planted in the hospitals' archives",
        _list(_planted(corpus)),
        "Five commands to try",
        "\n\n".join(f"  # {one.shows}\n  {one.command}" for one in commands(base, corpus)),
        "Ctrl-C stops the gateway and the hospitals.",
    ]
    return "\n\n".join(parts)


def _list(lines: Iterator[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:<{_WIDTH}}{what}" for name, what in lines)


def _places(base: str, node_file: Path, audit: Path | None) -> Iterator[tuple[str, str]]:
    yield "first page", f"{base}/"
    yield "DICOMweb", f"{base}/dicom-web"
    yield "FHIR R4 and R5", f"{base}/fhir"
    yield "one hospital's own", f"{base}/nodes/es-madrid/dicom-web (and each other node's id)"
    yield "state of the nodes", f"{base}/nodes"
    yield "node file", str(node_file)
    if audit:
        yield "audit records", str(audit)


def _planted(corpus: Corpus) -> Iterator[tuple[str, str]]:
    shared, split = corpus.case("shared-study"), corpus.case("split-study")
    clash, unlinked = corpus.case("uid-clash"), corpus.case("unlinked")
    bare, nameless = corpus.case("shared-patient-id"), corpus.case("no-patient-id")
    yield "held whole by two", f"{shared.study_uid} at {_and(shared.nodes)}"
    yield "split over two", f"{split.study_uid} at {_and(split.nodes)}"
    yield "UID clash", f"{clash.study_uid} is one patient at {clash.nodes[0]}, another at {clash.nodes[1]}"
    yield "unlinked patients", f"{unlinked.study_uid} at {_and(unlinked.nodes)}, under issuers that nobody linked"
    yield "one PatientID, two people", f"{bare.studies[0].patient_id} at {_and(bare.nodes)}"
    for study in nameless.studies:
        yield "no PatientID", f"{study.study_uid} at {study.node}"
    for study in corpus.case("no-date").studies:
        yield "no study date", f"{study.study_uid} at {study.node}"
    yield "down", f"{DOWN}: every federated answer names it as missing"


def _and(nodes: tuple[str, ...]) -> str:
    return " and ".join(nodes)


def commands(base: str, corpus: Corpus) -> tuple[Try, ...]:
    """Five, each complete in itself."""
    bare = corpus.case("shared-patient-id").studies[0].patient_id
    return (
        Try(
            "every study of every hospital; the Warning names the one that is down",
            _curl("-i", f"{base}/dicom-web/studies"),
        ),
        Try(
            "mammographies since January 2025, as FHIR",
            _curl(f"{base}/fhir/ImagingStudy?modality=MG&started=ge2025-01-01&_count=5"),
        ),
        Try("one image of a tomosynthesis, as the hospital stores it", _image(base, corpus)),
        Try("a Polish name, found without its diacritics, by dicomweb-client", _by_name(base)),
        Try(
            f"PatientID {bare} is two people: refused, with both issuers named",
            _curl("-i", f"{base}/dicom-web/studies?PatientID={bare}"),
        ),
    )


def _curl(*words: str) -> str:
    return shlex.join(("curl", "-sS", *words))


def _image(base: str, corpus: Corpus) -> str:
    study = next(
        study
        for study in corpus.nodes["es-madrid"].studies
        if study.is_generated
        and study.modalities == ("MG",)
        and any(instance.number_of_frames > 1 for instance in study.instances)
    )
    series, instance = next(
        (series, instance) for series in study.series for instance in series.instances if instance.number_of_frames > 1
    )
    path = f"studies/{study.study_uid}/series/{series.series_uid}/instances/{instance.sop_instance_uid}"
    return _curl("-H", "Accept: application/dicom; transfer-syntax=*", "-o", "image.dcm", f"{base}/dicom-web/{path}")


def _by_name(base: str) -> str:
    """In double quotes, which hold nothing here that a shell would replace."""
    program = (
        "from dicomweb_client import DICOMwebClient as Client; "
        f"print(*Client('{base}/dicom-web').search_for_studies(search_filters={{'PatientName': 'zolkiewska*'}}))"
    )
    return f'{shlex.quote(sys.executable)} -c "{program}"'
