"""How long the two halves of a message to or from an imaging process are: what stands before each message."""

from __future__ import annotations

import struct

LENGTHS = struct.Struct("<IQ")
