"""Programs that turn one source each into shards."""
