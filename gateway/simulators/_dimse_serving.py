"""What the DIMSE simulator needs around its operations: contexts, a quiet pynetdicom, and a peer that says nothing."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, build_context
from pynetdicom.presentation import PresentationContext

from gateway.simulators._dimse_index import Archive
from gateway.simulators._dimse_options import DimseOptions

VERIFICATION = "1.2.840.10008.1.1"
# Study Root, Patient Root (PS3.4 C.6).
FIND = ("1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.1.1")
MOVE = ("1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.1.2")
GET = ("1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.5.1.4.1.2.1.3")
_MOST_CONTEXTS = 128


def entity(ae_title: str, archive: Archive, options: DimseOptions) -> AE:
    """The application entity with everything that it accepts."""
    made = AE(ae_title=ae_title)
    made.maximum_associations = options.max_associations
    made.require_calling_aet = list(options.calling_ae_titles)
    made.maximum_pdu_size = 1 << 17
    for model in (VERIFICATION, *FIND, *(() if options.no_get else GET), *(() if options.no_move else MOVE)):
        made.add_supported_context(model, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
    if options.no_storage:
        return made
    stored = archive.transfer_syntaxes()
    known = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    for sop_class in dict.fromkeys([*stored, *known]):
        # The stored syntaxes come first, because the acceptor takes the first of its own that is offered.
        syntaxes = list(dict.fromkeys([*stored.get(sop_class, ()), *ALL_TRANSFER_SYNTAXES]))
        role = None if options.no_get else True
        made.add_supported_context(sop_class, syntaxes, scu_role=role, scp_role=role)
    return made


def proposed(archive: Archive) -> list[PresentationContext]:
    """A context per stored SOP class and syntax, as many as an association can carry (PS3.8 9.3.2.2)."""
    pairs = archive.transfer_syntaxes().items()
    return [build_context(sop_class, syntax) for sop_class, syntaxes in pairs for syntax in syntaxes][:_MOST_CONTEXTS]


def quieten() -> None:
    """pynetdicom logs identifiers, that is patients' names, and decodes the files it sends, unless told not to."""
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.LOG_HANDLER_LEVEL = "none"
    _config.STORE_SEND_CHUNKED_DATASET = True
    logger = logging.getLogger("pynetdicom")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL + 1)


def set_up(association: Any) -> None:
    """A peer that stops reading must not hold a thread for ever, and small answers must not wait for Nagle."""
    connection = association.dul.socket.socket
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(60)


def shut_down(server: Any) -> None:
    """Ends the accepting thread; it looks up only every half second, unless somebody knocks."""
    knock = threading.Timer(0.01, _knock, server.server_address[:2])
    knock.start()
    server.shutdown()
    knock.join()


def _knock(host: str, port: int) -> None:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), 1).close()


def hang_up(association: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)


class SharedContexts(list[Any]):
    """pynetdicom copies all contexts for each association (36 ms); nothing changes them, so one list serves all."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedContexts:
        return self


class Silence:
    """Takes TCP connections and says nothing."""

    def __init__(self, host: str, port: int, taken: Callable[[], None]) -> None:
        self._listening = socket.create_server((host, port))
        self.port: int = self._listening.getsockname()[1]
        self._taken = taken
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connections.append(self._listening.accept()[0])
                self._taken()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._connections:
            connection.close()
        self._thread.join(3)
