"""The harness's models."""
