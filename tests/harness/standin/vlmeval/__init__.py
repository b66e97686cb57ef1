"""Stands in for VLMEvalKit: the few names and rules that the adapter meets, in our own words."""
