"""huggingface_hub."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlparse
from urllib.request import getproxies


@cache
def stay_offline_without_network() -> str | None:
    """Be offline (``HF_HUB_OFFLINE``) from now on where the Hub's name leads to no address, so that what is not in the
    cache is refused at once: otherwise each file is asked for six times, which takes 23 seconds.

    Returns:
        Why nothing is fetched; ``None`` where the Hub may be asked. Found out once in a process.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "this environment is offline (HF_HUB_OFFLINE)"
    if getproxies():  # then the proxy knows the address
        return None
    host = urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True  # read at every request
        os.environ["HF_HUB_OFFLINE"] = "1"  # by processes that are started from here
        return f"{host} cannot be reached from here"
    return None
