"""Where work is done; the cluster itself is tried by ``test_on_ray``."""

import os
import socket
import sys
from concurrent.futures import Executor, Future

import pytest

from data_prep.engines import Local, in_order, nothing
from data_prep.on_ray import EngineError, _answers, _fact, _Seen, _witnesses
from dslight.cli import main


def test_results_come_in_the_order_of_the_work_of_which_no_more_than_wanted_is_handed_out():
    handed_out = []

    class Slow(Executor):
        def submit(self, fn, /, *args, **kwargs):
            handed_out.append(args[0])
            future = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    results = in_order(Slow(), lambda part: -part, range(10), 3)
    assert [next(results), next(results)] == [0, -1]
    assert handed_out == [0, 1, 2, 3, 4]
    assert list(results) == [-2, -3, -4, -5, -6, -7, -8, -9]
    with Local(2).pool([], None, nothing) as pool:
        assert list(in_order(pool, abs, range(-5, 0), 2)) == [5, 4, 3, 2, 1]
        assert os.getpid() not in in_order(pool, _process, range(3), 2)


def _process(part: int) -> int:
    return os.getpid()


def test_ray_that_is_not_installed_is_a_sentence(small, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    convert = ["data", "convert", str(small / "data.json"), "--out", str(small / "out")]
    assert main([*convert, "--engine", "ray"]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("--engine ray: Ray is not installed: pip install 'dslight[ray]'")
    )
    assert main([*convert, "--ray-address", "head:6379"]) == 1
    assert "--ray-address: head:6379; is for --engine ray" in capsys.readouterr().err
    assert not (small / "out").exists()


def test_a_node_that_sees_other_folders_refuses_the_work(small, tmp_path):
    """Not even a picture of a folder that is empty there may be set aside as missing."""
    seen = _Seen(tuple(_fact(one) for one in _witnesses(small / "images" / "sub")))
    seen.check()
    first = seen.facts[1].path
    os.rename(first, f"{first}.away")
    with pytest.raises(EngineError) as refused:
        seen.check()
    said = f"--engine ray: {first}: is not the same on node {socket.gethostname()}; all nodes have to see the folders"
    assert str(refused.value).startswith(said)


def test_an_address_where_nobody_listens_is_a_sentence_at_once():
    """Ray waits for minutes, and ends the process."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for said in (address, f"ray://{address}"):
            with pytest.raises(EngineError, match=rf"--ray-address: {said}: cannot be reached \("):
                _answers(said)
