"""What the whole suite shares: the rule about skips, the real peers, and no deadline per example on a busy machine."""

from hypothesis import settings

pytest_plugins = ["tests.skipping", "tests.figures", "tests.order", "tests.peer_fixtures"]

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
