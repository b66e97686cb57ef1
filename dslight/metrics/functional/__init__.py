"""The scoring rules as pure functions on strings: no torch, no Lightning, no state."""
