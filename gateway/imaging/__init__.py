"""Pixels understood: decoded, rendered, encoded anew, in processes of their own. Knows no node, no cache and no HTTP."""
