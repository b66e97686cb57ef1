"""Somebody else's package: it uses dslight and is not known to it."""
