"""Files, whatever is in them: locks, writing whole or not at all, reading JSON of a known form, digests, free space."""
