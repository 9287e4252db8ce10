"""`query`: the studies that a running gateway finds, as a table a person can read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from gateway.cli import console
from gateway.errors import GatewayError
from gateway.model.dataset import Dataset, text, texts
from gateway.model.vocabulary import (
    ISSUER,
    MODALITIES_IN_STUDY,
    PATIENT_ID,
    PATIENT_NAME,
    RETRIEVE_AE_TITLE,
    STUDY_DATE,
    STUDY_INSTANCE_COUNT,
    STUDY_SERIES_COUNT,
    STUDY_UID,
    tag,
)
from gateway.settings import is_loopback

_DESCRIPTION = tag("StudyDescription")
_DEADLINE = 60.0
# warn-code, warn-agent, then the text as a quoted string (RFC 7234 5.5).
_WARNING = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Studies:
    """What came back; `warnings` say what is missing from it."""

    rows: list[Dataset]
    warnings: tuple[str, ...]


def run(url: str, token: str, filters: Sequence[tuple[str, str]], nodes: Sequence[str], *, as_json: bool) -> None:
    """Prints the studies to standard output and what is missing to standard error."""
    with console.refusals():
        found = ask(url, token, filters, nodes)
    if as_json:
        print(json.dumps(found.rows, ensure_ascii=False, indent=2))
        warn(found)
    else:
        report(found)


def report(found: Studies) -> None:
    """The table, and what is missing from it."""
    show(found)
    warn(found)


def warn(found: Studies) -> None:
    for warning in found.warnings:
        console.errors().print(Text(f"warning: {warning}", style="yellow"))


def ask(url: str, token: str = "", filters: Sequence[tuple[str, str]] = (), nodes: Sequence[str] = ()) -> Studies:
    """One QIDO-RS search for studies. Raises GatewayError with the gateway's own words when it refuses."""
    parameters: list[tuple[str, str | int | float | bool | None]] = [
        *filters,
        *(("node", node) for node in nodes),
        ("includefield", "StudyDescription"),
    ]
    headers = {"Accept": "application/dicom+json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        # The house's proxy (HTTP_PROXY) would be told the token and whose studies are asked for, and finds itself.
        is_here = is_loopback(httpx.URL(url).host)
        answer = httpx.get(
            f"{url}/dicom-web/studies", params=parameters, headers=headers, timeout=_DEADLINE, trust_env=not is_here
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise GatewayError(
            f"no gateway answers at {url} ({type(error).__name__}); name it with --url, or start one with `imaging-gateway demo`"
        ) from None
    if answer.status_code not in (200, 204):
        raise GatewayError(_refusal(answer))
    return Studies(_rows(answer, url), warnings_of(answer.headers.get_list("warning")))


def _rows(answer: httpx.Response, url: str) -> list[Dataset]:
    try:
        rows = answer.json() if answer.content else []
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GatewayError(f"what answers at {url} is no gateway: it does not give DICOM JSON")
    return rows


def warnings_of(headers: Iterable[str]) -> tuple[str, ...]:
    """The texts of Warning headers, which may be several in one line."""
    return tuple(found.replace('\\"', '"') for header in headers for found in _WARNING.findall(header))


def _refusal(answer: httpx.Response) -> str:
    """The problem's own words (RFC 9457), and where each patient can be asked for."""
    try:
        problem: Any = answer.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict) or "detail" not in problem:
        return f"the gateway answered {answer.status_code}"
    return "\n".join([f"{answer.status_code}: {problem['detail']}", *map(str, problem.get("choices", ()))])


def show(found: Studies) -> None:
    """The table: two lines per study on a terminal, one long line elsewhere, for grep and awk."""
    screen = console.output()
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    layout = _STACKED if screen.is_terminal else _FLAT
    for heading in layout:
        table.add_column(heading, no_wrap=not screen.is_terminal, overflow="fold")
    for row in found.rows:
        cells = {name: console.printable(value) for name, value in _cells(row).items()}
        if screen.is_terminal:
            cells["Nodes"] = cells["Nodes"].replace(" ", "\n")
        table.add_row(*(Text("\n".join(cells[name] for name in names)) for names in layout.values()))
    screen.print(table)
    screen.print(f"{len(found.rows)} {'study' if len(found.rows) == 1 else 'studies'}")


_FLAT = {
    name: (name,)
    for name in ("Date", "Patient", "Name", "Modalities", "Description", "Series", "Images", "Nodes", "Study UID")
}
_STACKED = {
    "Date": ("Date", "Modalities"),
    "Patient": ("Name", "Patient"),
    "Study": ("Description", "Study UID"),
    "Series\nImages": ("Series", "Images"),
    "Nodes": ("Nodes",),
}


def _cells(row: Dataset) -> dict[str, str]:
    patient, issuer = text(row, PATIENT_ID) or "-", text(row, ISSUER)
    return {
        "Date": _date(text(row, STUDY_DATE)),
        "Patient": f"{patient} ({issuer})" if issuer else patient,
        "Name": text(row, PATIENT_NAME).replace("^", " ").strip(),
        "Modalities": " ".join(texts(row, MODALITIES_IN_STUDY)),
        "Description": text(row, _DESCRIPTION),
        "Series": text(row, STUDY_SERIES_COUNT),
        "Images": text(row, STUDY_INSTANCE_COUNT),
        "Nodes": " ".join(texts(row, RETRIEVE_AE_TITLE)),
        "Study UID": text(row, STUDY_UID),
    }


def _date(day: str) -> str:
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else day
