"""Codecs that both sides of the gateway need. They do no I/O of their own: bytes in, bytes out; no HTTP library."""
