"""Whether a checkpoint's name means a folder: then it is here or it is missing, and no network is asked."""

from __future__ import annotations

from pathlib import Path

from dslight.upstream.hub import stay_offline_without_network


def check_checkpoint(name: str) -> None:
    """Refuse a path that leads nowhere, and a folder without a configuration.

    Raises:
        ValueError: beginning with ``pretrained``.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"pretrained: the folder {name} has no config.json, so it is no checkpoint of transformers")
    check_folder(name, "pretrained")


def check_folder(name: str, key: str) -> None:
    """Refuse a path that leads nowhere. A hub name is one word, or two with a slash.

    Raises:
        ValueError: beginning with ``key``.
    """
    path = Path(name).expanduser()
    if path.exists():
        return
    meant = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")
    beside = "/" in name and path.parent.is_dir()
    if meant or beside:
        raise ValueError(f"{key}: there is no folder {name}")
    stay_offline_without_network()
