"""Features of a vision encoder that does not train, kept in a folder and read instead of running it."""
