"""Whether the installed libraries are those that dslight was tested with: the ranges that its own metadata name."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement


def untested() -> list[str]:
    """Every library that dslight needs and whose installed version is outside of the tested range, with both."""
    try:
        needed = [Requirement(text) for text in metadata.requires("dslight") or ()]
    except metadata.PackageNotFoundError:  # not installed, but found on a path
        return []
    found = []
    for need in needed:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        if version == "not installed" or not need.specifier.contains(version, prereleases=True):
            tested = ", ".join(sorted(map(str, need.specifier), reverse=True))
            found.append(f"{need.name} {version} (tested: {tested})")
    return found
