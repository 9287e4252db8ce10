"""What the environment says is what the gateway goes by."""

from __future__ import annotations

import pytest

from gateway import settings

EMPTY = ("STORE", "AUDIT", "MAPPINGS", "EXPORT_DIRECTORY", "TRUSTED_PROXIES", "PORT", "SECRET", "REDIS_URL", "CACHE")


@pytest.mark.parametrize("name", EMPTY)
def test_a_variable_that_is_empty_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GATEWAY_{name}", "")
    field = name.lower()
    assert getattr(settings.read(), field) == settings.Settings.model_fields[field].default


def test_a_variable_that_is_no_setting_is_named_with_the_one_that_may_be_meant() -> None:
    environment = {
        "GATEWAY_CACHEKEY": "k",
        "gateway_audit": "a",
        "GATEWAY_PACS": "p",
        "GATEWAY_TOKEN": "t",
        "PATH": "/",
    }
    assert settings.strangers(environment) == {"GATEWAY_CACHEKEY": "GATEWAY_CACHE_KEY", "GATEWAY_PACS": ""}
