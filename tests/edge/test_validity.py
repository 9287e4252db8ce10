"""With GATEWAY_VALIDATE_FHIR no FHIR body leaves that the published models refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import Gateway, files_node

from gateway.edge.fhir import validity
from gateway.errors import GatewayError
from gateway.simulators import corpus


def test_what_leaves_is_valid_in_both_versions(tmp_path: Path) -> None:
    built = corpus.build(tmp_path, scale="small")
    with Gateway([files_node("ee-tartu", built.nodes["ee-tartu"].directory)], validate_fhir=True) as gateway:
        for root in ("/fhir/r4", "/fhir/r5"):
            bundle = gateway.get(f"{root}/ImagingStudy", params={"_include": "ImagingStudy:endpoint"})
            study = gateway.get(f"{root}/ImagingStudy/{bundle.json()['entry'][0]['resource']['id']}")
            assert (bundle.status_code, study.status_code) == (200, 200)


@pytest.mark.parametrize("is_r5", [False, True])
def test_an_invalid_body_is_an_error_that_names_the_element_and_no_value(is_r5: bool) -> None:
    with pytest.raises(GatewayError) as caught:
        validity.check({"resourceType": "Endpoint", "status": 17, "id": "JONES"}, is_r5=is_r5)
    assert "Endpoint" in caught.value.detail
    assert "JONES" not in caught.value.detail
