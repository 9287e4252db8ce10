"""The look-up cache and the spool: what may be lost at any moment. It knows no protocol and no caller."""
