"""What the whole suite shares: the rule about skips, and the real peers."""

pytest_plugins = ["tests.skipping", "tests.peer_fixtures"]
