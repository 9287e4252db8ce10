"""The error tree: one stable code per kind, no HTTP in it; texts carry our own identifiers only, never patient data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

_A_LIST, _A_TABLE = "is to be a list, in [ ]", "is to be a table, in { }"
_WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "list_type": _A_LIST,
    "tuple_type": _A_LIST,
    "dict_type": _A_TABLE,
    "model_type": _A_TABLE,
    "union_tag_not_found": "its kind is missing",
}


def fault_of(found: Mapping[str, Any]) -> str:
    """One of pydantic's errors in the words of who configures, mostly in TOML; never the value."""
    loc, kind = found["loc"], found["type"]
    if len(loc) == 1 and _WORDS.get(kind) == _A_LIST:
        return f"{_A_LIST}, or of tables that are each headed [[{loc[0]}]]"
    return _WORDS.get(kind) or str(found["msg"]).removeprefix("Value error, ")


def let_go(error: BaseException) -> None:
    """Of an error that was dealt with and that something it tells of still holds: what its frames have in hand goes at once, and
    not when the collector comes by."""
    error.__traceback__ = error.__cause__ = error.__context__ = None


class deadline_told:  # noqa: N801 - read as words: `with deadline_told(...):`
    """A deadline (asyncio.timeout) that passes inside is told as `failure` says. Written out, as generators are slow to enter and
    leave: each answer has some."""

    __slots__ = ("_failure",)

    def __init__(self, failure: Callable[[], GatewayError]) -> None:
        self._failure = failure

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, TimeoutError):
            let_go(error)  # the timeout holds this task
            del trace
            raise self._failure() from None


class GatewayError(Exception):
    """Anything the gateway refuses or fails to do.

    `code` is stable and documented in gateway/README.md. `detail` is safe to show to the caller: it names parameters,
    nodes and UIDs, never patient data and never a library's own message. `parameter` names the request parameter at fault.
    """

    code = "GW000"
    title = "Gateway error"

    def __init__(self, detail: str, *, parameter: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.parameter = parameter

    def alone(self) -> Self:
        """The same error as a new one, to be kept or raised anew: without the frames of this one, which hold what the failed work
        had in hand, and often this error itself."""
        return self.rephrased(str)

    def rephrased(self, phrase: Callable[[str], str]) -> Self:
        """The same error with other words, as a new one: the original may be shared with other callers."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.detail = phrase(self.detail)
        twin.args = (twin.detail,)
        return twin


class RequestError(GatewayError):
    """The caller's request cannot be served as it stands."""

    code, title = "GW100", "Bad request"


class InvalidQuery(RequestError):
    code, title = "GW101", "Invalid query"


class NotAcceptable(RequestError):
    code, title = "GW102", "Not acceptable"


class Unauthenticated(RequestError):
    code, title = "GW103", "Not authenticated"


class Forbidden(RequestError):
    code, title = "GW104", "Forbidden"


class NotFound(RequestError):
    code, title = "GW105", "Not found"


class NoSuchStudy(NotFound):
    """Every node asked said that it has no study of the UID."""


class Gone(NotFound):
    """As NoSuchStudy, of a study that the same nodes had."""

    code, title = "GW115", "Deleted"


class Conflict(RequestError):
    """The identifier names more than one patient's data; `choices` are the addresses that name just one."""

    code, title = "GW106", "Ambiguous: more than one patient"

    def __init__(self, detail: str, *, parameter: str | None = None, choices: tuple[str, ...] = ()) -> None:
        super().__init__(detail, parameter=parameter)
        self.choices = choices


class MethodNotAllowed(RequestError):
    code, title = "GW107", "Method not allowed"


class TooLarge(RequestError):
    code, title = "GW108", "Too large"


class IdentityUnavailable(RequestError):
    """The issuer's keys cannot be had, so that no token can be verified. Nothing is wrong with the token."""

    code, title = "GW109", "Identity not verifiable now"


class AuditUnavailable(RequestError):
    """Nothing is shown to anyone while it cannot be written down who saw it."""

    code, title = "GW110", "Audit not writable now"


class TooManyRequests(RequestError):
    """The caller asks more often than it may; `retry_after` is in seconds."""

    code, title = "GW111", "Too many requests"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class UnsupportedMediaType(RequestError):
    code, title = "GW112", "Unsupported media type"


class NowhereToStore(RequestError):
    """No node takes what is stored at the federated root for this caller."""

    code, title = "GW113", "Nowhere to store"


class ImagingBusy(RequestError):
    """Too many images are being decoded; `retry_after` is in seconds."""

    code, title = "GW114", "Too many images at once"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class RecordUnavailable(RequestError):
    """When studies were first seen is written down where nobody answers now."""

    code, title = "GW116", "Record of studies not readable now"


class NodeError(GatewayError):
    """One node failed. `transient` errors are the only ones that may be retried; `retry_after` is in seconds."""

    code, title = "GW200", "Node failed"
    transient = False

    def __init__(self, node: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"node {node}: {detail}")
        self.node = node
        self.reason = detail
        self.retry_after = retry_after

    def rephrased(self, phrase: Callable[[str], str]) -> Self:
        twin = super().rephrased(phrase)
        twin.reason = phrase(self.reason)
        return twin


class NodeUnreachable(NodeError):
    code, title, transient = "GW201", "Node unreachable", True


class NodeTimeout(NodeError):
    code, title, transient = "GW202", "Node timed out", True


class NodeBusy(NodeError):
    code, title, transient = "GW203", "Node busy", True


class NodeRefused(NodeError):
    code, title = "GW204", "Node refused"


class NodeProtocolError(NodeError):
    code, title = "GW205", "Node answered out of protocol"


class Unsupported(NodeError):
    code, title = "GW206", "Not supported by the node"


class BudgetExceeded(NodeError):
    """The node cannot match a key and the descent below its rows would cost more than its budget."""

    code, title = "GW207", "Search too broad for the node"


class NoNodeAnswered(NodeError):
    """Every selected node failed; `failures` holds each node's own error."""

    code, title, transient = "GW208", "No node answered", True

    def __init__(self, failures: tuple[NodeError, ...]) -> None:
        names = ", ".join(failure.node for failure in failures)
        GatewayError.__init__(self, "no selected node answered: " + "; ".join(f.detail for f in failures))
        self.node = names
        self.reason = "no answer"
        self.failures = failures
        self.retry_after = min((f.retry_after for f in failures if f.retry_after), default=None)

    def rephrased(self, phrase: Callable[[str], str]) -> Self:
        twin = super().rephrased(phrase)
        twin.failures = tuple(failure.rephrased(phrase) for failure in self.failures)
        return twin


class MappingError(GatewayError):
    code, title = "GW300", "Mapping error"


class InvalidMapping(MappingError):
    """A mapping file is wrong: the gateway does not start. The text names the file and the key."""

    code, title = "GW301", "Invalid mapping"


class Unmappable(MappingError):
    """A record cannot be read by its mapping; it is reported, not silently lost."""

    code, title = "GW302", "Unmappable record"


class SettingsError(GatewayError):
    """A setting or the node file is wrong: the gateway does not start. The text names the file and the key."""

    code, title = "GW900", "Settings error"
