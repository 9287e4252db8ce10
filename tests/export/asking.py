"""A client of `$export` for the tests: begins an export, asks how it stands as it is told to, reads its files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

ASYNC = {"Prefer": "respond-async", "Accept": "application/fhir+json"}


@dataclass
class Export:
    """One export under way: `progress` are the sentences that it was told by."""

    client: httpx.Client
    url: str
    progress: list[str] = field(default_factory=list)

    def poll(self) -> httpx.Response:
        answer = self.client.get(self.url, headers={"Accept": "application/json"})
        if "x-progress" in answer.headers:
            self.progress.append(answer.headers["x-progress"])
        return answer

    def over(self, seconds: float = 60.0) -> httpx.Response:
        """The first answer that is not 202 (or 429)."""
        ends, polls = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            answer = self.poll()
            if answer.status_code not in (202, 429):
                return answer
            polls += 1  # a few may come in quick succession
            time.sleep(0.1 if polls < 7 else max(1.0, min(float(answer.headers["retry-after"]), 2.0)))
        raise AssertionError(f"the export did not end; last heard: {self.progress[-1:]}")

    def manifest(self, seconds: float = 60.0) -> dict[str, Any]:
        answer = self.over(seconds)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def lines(self, manifest: Mapping[str, Any], type_: str) -> Iterator[dict[str, Any]]:
        """The resources of one type, from `output` and `error`."""
        for file in (*manifest["output"], *manifest["error"]):
            if file["type"] == type_:
                answer = self.client.get(file["url"], headers={"Accept": "application/fhir+ndjson"})
                assert answer.status_code == 200, answer.text
                assert answer.headers["content-type"].startswith("application/fhir+ndjson")
                read = [orjson.loads(line) for line in answer.content.splitlines()]
                assert len(read) == file["count"]
                yield from read

    def ids(self, manifest: Mapping[str, Any], type_: str = "ImagingStudy") -> Counter[str]:
        """How often each id comes."""
        return Counter(one["id"] for one in self.lines(manifest, type_))


def begin(client: httpx.Client, path: str = "/fhir/$export", **more: Any) -> Export:
    headers = {**ASYNC, **more.pop("headers", {})}
    answer = client.request(more.pop("method", "GET"), path, headers=headers, **more)
    assert answer.status_code == 202, answer.text
    return Export(client, answer.headers["content-location"])
