"""What dslight expects of huggingface_hub beyond its documentation. Where this fails, ``dslight/upstream/hub.py`` is to
be mended, and nothing else."""

import os
import socket
import time

import pytest
from huggingface_hub import constants

from dslight.components.transformers_config import settings_of
from dslight.upstream import hub


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "getproxies", dict)
    hub.stay_offline_without_network.cache_clear()
    yield
    hub.stay_offline_without_network.cache_clear()


def unknown(*args, **kwargs):
    raise socket.gaierror(-2, "Name or service not known")


def test_a_name_that_is_not_in_the_cache_is_refused_at_once_where_the_hub_has_no_address(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(ValueError, match=r"there is no folder nobody/nothing, .* huggingface\.co cannot be reached"):
        settings_of("nobody/nothing", False)
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # of processes that are started from here


def test_a_proxy_is_asked_and_an_address_is_not_looked_for(monkeypatch):
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: pytest.fail("looked for"))
    assert hub.stay_offline_without_network() is None
    assert not constants.HF_HUB_OFFLINE


def test_an_environment_that_is_offline_is_called_so(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing, .* offline \(HF_HUB_OFFLINE\)"):
        settings_of("nobody/nothing", False)
