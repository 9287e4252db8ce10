"""Judge: schemathesis on the published OpenAPI description: a few hundred requests, half of them against the description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks

from gateway.edge import openapi, operations, routes
from gateway.edge.dicomweb import qidoquery, wado
from gateway.edge.negotiation import MULTIPART
from gateway.model import query
from tests import peers, sending
from tests.interop.conftest import ISSUER, node
from tests.judges.conftest import TIME_ZONE
from tests.running import Gateway, files_node
from tests.shelf import Shelf

pytestmark = pytest.mark.interop

EXAMPLES = 6
USED = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
)
NOT_USED = {
    "ignored_auth": "this gateway is an open one; tests/security judges tokens",
    "positive_data_acceptance": "what has the right form may still be a day that there is not, or a study that there is not",
    "use_after_free": "each request stands alone here; tests/export judges an export from its beginning to its end",
    "ensure_resource_availability": "each request stands alone here; tests/interop/test_storing.py finds what was stored",
    "object_level_authorization": "nobody owns anything here",
    "unsupported_method": "tests/edge/test_refusals.py",
    "allow_header_conformance": "tests/edge/test_refusals.py",
    "missing_required_header": "an export without Prefer is refused with 400: tests/export",
    "response_headers_conformance": "none is described",
}
load_all_checks()


@schemathesis.serializer(MULTIPART)
def _as_parts(ctx: Any, value: Any) -> bytes:
    return sending.body(value if isinstance(value, bytes) else str(value).encode())


@pytest.fixture(scope="module")
def gateway(shelf: Shelf, orthanc_peer: peers.Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    nodes = [
        files_node("archive", tmp_path_factory.mktemp("archive"), patient_id_issuer=ISSUER, store=True),
        files_node("disk", shelf.directory, patient_id_issuer=ISSUER, time_zone=TIME_ZONE),
        node("web", "dicomweb", {"url": orthanc_peer.dicomweb}),
    ]
    with Gateway(nodes) as running:
        yield running


# What is published, for a gateway that does not run yet: a test of its own per operation.
described = schemathesis.openapi.from_dict(openapi.description(routes.table(), "http://127.0.0.1"))
described.config.generation.update(modes=list(GenerationMode))


@described.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_gateway_is_what_it_says(case: Any, gateway: Gateway, shelf: Shelf) -> None:
    _where_something_is(case, shelf)
    answer = case.call(base_url=gateway.url)
    # A body that was put in its place is taken for a wrong one.
    used = USED if case.media_type != MULTIPART else [each for each in USED if each != checks.negative_data_rejection]
    case.validate_response(answer, checks=[*used, explained])


def explained(ctx: Any, response: Any, case: Any) -> None:
    """No 5xx but a node's, and that says so by its code."""
    if response.status_code >= 500 and "GW2" not in response.text and case.path != "/ready":
        not_a_server_error(ctx, response, case)


def _where_something_is(case: Any, shelf: Shelf) -> None:
    """Of the requests that the description allows, most are for a study that there is."""
    is_storing = case.media_type == MULTIPART
    if is_storing:
        case.headers["Content-Type"] = sending.DICOM
    if case.meta and case.meta.generation.mode is GenerationMode.POSITIVE:
        seed = sum(map(ord, f"{case.path_parameters}{case.query}"))
        if seed % 4:
            file = shelf.files[seed % len(shelf.files)]
            node_ = "archive" if is_storing else "disk"
            real = {"study": file.study, "series": file.series, "instance": file.uid, "node": node_, "frames": "1"}
            real |= {"studyUID": file.study, "seriesUID": file.series, "objectUID": file.uid}
            case.path_parameters = {name: real.get(name, value) for name, value in (case.path_parameters or {}).items()}
            case.query = {name: real.get(name, value) for name, value in (case.query or {}).items()}
            if is_storing:
                case.body = file.bytes


def test_every_check_is_used_or_left_out_with_a_reason() -> None:
    known = {each.__name__ for each in schemathesis.checks.CHECKS.get_all()}
    used = {each.__name__ for each in USED} | {"not_a_server_error"}
    assert known - used - NOT_USED.keys() <= {"max_response_time"}


def test_every_route_is_described(gateway: Gateway) -> None:
    document = gateway.get("/openapi.json").json()
    assert document == openapi.description(routes.table(), gateway.url)
    assert document["openapi"].startswith("3.1")
    paths = {re.sub(r"/\{[^}]+\}", "/*", path) for path in document["paths"]}
    assert {"/dicom-web/studies", "/nodes/*/dicom-web/studies/*/series/*/metadata", "/fhir/r5/Patient/*"} <= paths
    operations = [(path, method) for path, each in document["paths"].items() for method in each]
    assert len(operations) > 50
    for path, method in operations:
        told = document["paths"][path][method]
        assert [each["name"] for each in told["parameters"] if each["in"] == "path"] == re.findall(r"\{(\w+)\}", path)


def test_every_parameter_of_a_search_is_described() -> None:
    assert qidoquery.OPTIONS | {"includefield"} == operations.OF_A_SEARCH.keys()


def test_the_forms_that_are_described_are_those_that_are_read() -> None:
    assert query._UID.pattern == operations.UID
    assert query._NUMBER.pattern == operations.NUMBER
    assert operations.IN_PATHS["path"]["pattern"] == f"^{wado._BULKDATA.pattern}$"


def test_the_description_is_public_and_names_no_node(shelf: Shelf) -> None:
    with Gateway([files_node("quiet-clinic", shelf.directory)], oidc_issuer="https://issuer.invalid") as guarded:
        answer = httpx.get(f"{guarded.url}/openapi.json")
        assert answer.status_code == 200
        assert "quiet-clinic" not in answer.text
        assert guarded.get("/nodes").status_code == 401
