"""Encrypts what lies in Redis with AES-GCM, so that neither Redis nor its disk nor its network shows a patient's data."""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.errors import SettingsError

_NONCE = 12


class Seal:
    """AES-256-GCM with a random nonce before each text; a key is good for some 2**32 entries (NIST SP 800-38D 8.3)."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, value: bytes, key: str) -> bytes:
        """The value encrypted for one place: `key`, the entry's own, is the associated data."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, value, key.encode())

    def open(self, stored: bytes, key: str) -> bytes | None:
        """The value; None for what was written in the clear, with another key, for another place, or was tampered with."""
        if len(stored) <= _NONCE:
            return None
        try:
            return self._cipher.decrypt(stored[:_NONCE], stored[_NONCE:], key.encode())
        except InvalidTag:
            return None


def seal_of(text: str) -> Seal:
    """The seal of GATEWAY_CACHE_KEY. Raises SettingsError for what is not 32 bytes in base64."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise SettingsError("GATEWAY_CACHE_KEY: is not 32 bytes in base64", parameter="GATEWAY_CACHE_KEY")
    return Seal(key)
