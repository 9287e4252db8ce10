"""Names found by the beginnings of their words at Orthanc, dcmqrscp, sekmet-fhir and in files: nobody is kept back."""

from __future__ import annotations

import pytest

from tests.interop.conftest import HOLDERS
from tests.interop.test_gateway_over_real_peers import NAMED, alphabetic, plain, root, uid_of
from tests.running import Gateway
from tests.shelf import Shelf

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("patient", NAMED)
def test_a_name_is_found_by_its_words_in_any_order(patient: str, gateway: Gateway, shelf: Shelf) -> None:
    study = shelf.of_patient(patient)
    words = [word for word in study.name.split("=")[0].split("^") if word]
    backwards = " ".join(reversed(words))
    beginnings = " ".join(word[: max(2, len(word) // 2)] for word in reversed(words))
    for holder in HOLDERS:
        for key in (backwards, plain(backwards).lower(), beginnings, plain(beginnings).upper(), words[-1]):
            asked = {"PatientName": key, "fuzzymatching": "true"}
            answer = gateway.get(root(holder) + "/studies", params=asked)
            assert answer.status_code == 200, (holder, key)
            found = {uid_of(row): alphabetic(row) for row in answer.json() if uid_of(row) in shelf.uids}
            assert found.get(study.uid) == study.name.split("=")[0], (holder, key)
            for name in found.values():
                beginning = [word.casefold() for word in plain(name).replace("^", " ").split()]
                wanted = plain(key).casefold().split()
                if plain(key).isascii() and plain(name).isascii():
                    assert all(any(one.startswith(word) for one in beginning) for word in wanted), (holder, key)
