"""The harness's interface."""
