"""What a caller may see of an answer. It does no I/O and decides nothing about who the caller is."""
