"""Models by name."""

supported_VLM: dict = {}  # noqa: N816
