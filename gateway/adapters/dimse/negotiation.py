"""The A-ASSOCIATE exchange: what we propose to a node and what it makes of it (PS3.8 9.3.2-9.3.4, PS3.7 D.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION, build_role
from pynetdicom._globals import APPLICATION_CONTEXT_NAME
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_requestor
from pynetdicom.transport import AddressInformation

ACCEPTED, REJECTED = 0x02, 0x03
"""The PDU types of the two answers."""
_NOWHERE = AddressInformation("127.0.0.1", 104)  # the primitive wants addresses, the PDU has none


@dataclass(slots=True)
class Proposal:
    """What an association is requested with."""

    calling_ae_title: str
    called_ae_title: str
    max_pdu: int
    contexts: Sequence[PresentationContext]
    scp_roles: Sequence[str] = ()
    extended: Sequence[SOPClassExtendedNegotiation] = ()

    def encoded(self) -> bytes:
        """The A-ASSOCIATE-RQ PDU. Numbers the contexts."""
        for number, context in enumerate(self.contexts):
            context.context_id = 2 * number + 1
        primitive = A_ASSOCIATE()
        primitive.application_context_name = UID(APPLICATION_CONTEXT_NAME)
        primitive.calling_ae_title, primitive.called_ae_title = self.calling_ae_title, self.called_ae_title
        primitive.calling_presentation_address = primitive.called_presentation_address = _NOWHERE
        primitive.presentation_context_definition_list = list(self.contexts)
        primitive.user_information = self._user_information()
        return A_ASSOCIATE_RQ(primitive).encode()

    def _user_information(self) -> list[Any]:
        length, uid, version = (
            MaximumLengthNotification(),
            ImplementationClassUIDNotification(),
            ImplementationVersionNameNotification(),
        )
        length.maximum_length_received = self.max_pdu
        uid.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
        version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
        return [
            length,
            uid,
            version,
            *(build_role(UID(name), scp_role=True) for name in self.scp_roles),
            *self.extended,
        ]

    def outcome(self, encoded: bytes) -> Accepted:
        """What an A-ASSOCIATE-AC PDU says of it. Raises whatever a broken one provokes in pynetdicom."""
        answer = A_ASSOCIATE_AC()
        answer.decode(encoded)
        primitive = answer.to_primitive()
        given = primitive.user_information
        roles = {
            one.sop_class_uid: (one.scu_role, one.scp_role) for one in _of(given, SCP_SCU_RoleSelectionNegotiation)
        }
        asked = set(self.scp_roles)
        for context in self.contexts:
            if context.abstract_syntax in asked:
                context.scu_role, context.scp_role = False, True
        negotiated = negotiate_as_requestor(
            list(self.contexts), primitive.presentation_context_definition_results_list, roles
        )
        versions = _of(given, ImplementationVersionNameNotification)
        return Accepted(
            {one.context_id or 0: one for one in negotiated if one.result == 0},
            max((one.maximum_length_received for one in _of(given, MaximumLengthNotification)), default=0),
            (versions[0].implementation_version_name or "") if versions else "",
            {
                str(one.sop_class_uid): one.service_class_application_information or b""
                for one in _of(given, SOPClassExtendedNegotiation)
            },
        )


def _of(items: Sequence[Any], kind: type[Any]) -> list[Any]:
    return [one for one in items if isinstance(one, kind)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What stands between us and the node. `max_pdu` is the longest P-DATA-TF that it takes, 0 for any."""

    contexts: Mapping[int, PresentationContext] = field(default_factory=dict)
    max_pdu: int = 0
    implementation: str = ""
    extensions: Mapping[str, bytes] = field(default_factory=dict)

    def syntax(self, context_id: int) -> str:
        """The transfer syntax of an accepted context, '' for any other."""
        context = self.contexts.get(context_id)
        return str(context.transfer_syntax[0]) if context else ""


def rejection(encoded: bytes) -> tuple[int, int, int]:
    """(result, source, reason) of an A-ASSOCIATE-RJ PDU (PS3.8 Table 9-21)."""
    answer = A_ASSOCIATE_RJ()
    answer.decode(encoded)
    return answer.result or 0, answer.source or 0, answer.reason_diagnostic or 0
