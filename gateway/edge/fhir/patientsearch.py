"""Patient: read and search. There is no patient index: a Patient is whoever has a study somewhere, by (issuer, id)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from starlette.responses import Response

from gateway.edge.fhir import listing, patientkeys, shown
from gateway.edge.fhir.criteria import Criteria, add
from gateway.edge.fhir.imagingstudy import Resource
from gateway.edge.fhir.request import FhirRequest
from gateway.edge.fhir.searchgrammar import Name
from gateway.edge.querystring import one_of
from gateway.errors import InvalidQuery, NotFound
from gateway.federation.federate import absent
from gateway.federation.page import Page, Reach
from gateway.model.answer import Found, Issue
from gateway.model.patient import PatientKey
from gateway.model.query import Match, Operator, Query
from gateway.model.vocabulary import ISSUER, PATIENT_ID, Level

REVERSE_INCLUDES = ("ImagingStudy:patient", "ImagingStudy:subject")


async def search(asked: FhirRequest) -> Response:
    """By identifier, name, birth date or id; without any of them it is refused, since it would list everybody."""
    context = asked.context
    context.pipeline.require("search", context.caller, context.nodes, "Patient", "s")
    criteria, referring = Criteria(asked.renderer), set[str]()

    async def add_key(name: Name, text: str, values: list[str]) -> None:
        if text == "_revinclude":
            referring.update(one_of(value, REVERSE_INCLUDES, text) for value in values)
            return
        key = patientkeys.KEYS.get(name.key)
        if key is None or name.type:
            raise listing.unsupported("Patient", text)
        if values:
            await add(criteria, key, name, values)

    asked_for = await listing.parse(asked, "Patient", add_key)
    if not (criteria.matches or criteria.conditions or criteria.impossible):
        names = ", ".join(patientkeys.KEYS)
        raise InvalidQuery(f"a Patient search needs one of {names}", parameter="identifier")
    criteria.check_repeated({})
    page = Page()
    if not criteria.impossible:
        reach = Reach(accepts=criteria.accepts if criteria.conditions else None)
        page = await context.pipeline.search(
            context.caller, criteria.query, context.nodes, reach, resource="Patient", permission="s"
        )
    issues = [*page.issues, *(Issue("", NotFound.code, text) for text in criteria.unknown)]
    patients = listing.paged(asked, asked_for, _patients(asked, page.items))
    studies = await _studies_of(asked, patients.items) if referring and patients.items else Page()
    issues += [issue for issue in studies.issues if issue not in issues]
    response = listing.respond(asked, asked_for, patients, issues, _by_reference(asked, studies.items))
    await asked.renderer.patients.flush()
    return response


async def _studies_of(asked: FhirRequest, patients: Iterable[Resource]) -> Page:
    """Every study of these patients, whatever they were found by."""
    keys = [await asked.renderer.patients.key_of(str(one["id"])) for one in patients]
    theirs = Criteria(asked.renderer)
    theirs.add_patients([key for key in keys if key])
    context, reach = asked.context, Reach(accepts=theirs.accepts)
    return await context.pipeline.search(context.caller, theirs.query, context.nodes, reach, distinct=sys.maxsize)


def _by_reference(asked: FhirRequest, studies: Iterable[Found]) -> dict[str, Resource]:
    rendered = (asked.profile.of(asked.renderer.study(one), is_r5=asked.renderer.is_r5) for one in studies)
    return {f"ImagingStudy/{one['id']}": one for one in rendered}


def _patients(asked: FhirRequest, found: Iterable[Found]) -> list[Resource]:
    """Each patient once; identifiers that one study's holders know to be one patient's are one Patient."""
    studies = [one for one in found if one.patient.is_named]
    shown_: set[PatientKey] = set()
    patients = []
    for key in sorted({one.patient for one in studies}):
        if key not in shown_:
            own = [one for one in studies if key in one.patients]
            shown_ |= {key, *(other for one in own for other in one.patients)}
            patients.append(asked.renderer.patient(key, own))
    return patients


async def read(asked: FhirRequest) -> Response:
    """By an id that was given out here. Raises NotFound, or NodeUnreachable while a silent node may know the patient."""
    context, identifier = asked.context, asked.request.path_params["id"]
    context.pipeline.require("read", context.caller, context.nodes, "Patient", "r")
    wanted = shown.of_query(asked.query, "Patient", is_r5=asked.renderer.is_r5)
    key = await asked.renderer.patients.key_of(identifier)
    if key is None:
        raise NotFound("there is no Patient of that id; ids are given out by ImagingStudy and Patient searches")
    by_id = Match((PATIENT_ID,), Operator.EXACT, (key.id,))
    by_issuer = Match((ISSUER,), Operator.EXACT, (key.issuer,))
    answer = await context.pipeline.search(
        context.caller, Query(Level.STUDY, (by_id, by_issuer)), context.nodes, resource="Patient"
    )
    found = [one for one in answer.items if key in one.patients]
    if not found:
        raise absent("a study of this Patient", answer.issues)
    return asked.respond_with(wanted.of(asked.renderer.patient(key, found)), answer.issues)
