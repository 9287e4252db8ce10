"""A small real peer per protocol, for the demo, the tests and the users' own testing.

It may not import adapters, federation or anything else that it is there to judge.
"""
