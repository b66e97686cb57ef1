"""Shards, plan, conversations, views and loaders (see the modules)."""
