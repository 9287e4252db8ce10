"""The command line: serve, demo, check, ping, query, simulate. It only starts, asks and prints; it holds no rule."""
