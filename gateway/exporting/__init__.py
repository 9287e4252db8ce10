"""Carries export jobs through, step by step, on any replica. It knows no protocol: what a step does is given to it."""
