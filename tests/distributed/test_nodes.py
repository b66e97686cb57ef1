"""Several torchrun agents, restarts and SIGTERM: losses and answers are those of one process that nothing happened to.

An agent stands for a node; all of them are on this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from launches import SHARDED, fork, free_port, launch, launch_all, strategy


@pytest.fixture(scope="module")
def whole(recipe, fit, tmp_path_factory):
    """A recipe and its run on one process."""
    file = recipe("DeepStackL", optimizer="AdamW")
    done = fit(file, tmp_path_factory.mktemp("whole"))
    assert done.code == 0, done.output[-4000:]
    return file, done


def call(recipe: Path, folder: Path, *overrides: str) -> list[str]:
    run = ["-m", "dslight", "fit", str(recipe), f"run_dir={folder / 'run'}", "checkpoint_every=1"]
    return [*run, strategy(SHARDED, replicate=2), *overrides]


def agents(port: int, *arguments: str, backend: str = "c10d") -> list[list[str]]:
    """torchrun for each of two nodes with a process each."""
    place = {
        "c10d": ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-id={port}"],
        "static": ["--master-addr=127.0.0.1", f"--master-port={port}"],
    }[backend]
    common = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *place]
    return [[*common, f"--node-rank={node}", *arguments] for node in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["c10d", "static"])
def test_two_agents_train_as_one_process(backend, whole, done_in, tmp_path):
    file, one = whole
    nodes = strategy(SHARDED, replicate="nodes")
    ended = launch_all(tmp_path, agents(free_port(), *call(file, tmp_path, nodes), backend=backend))
    assert ended.code == 0, ended.output[-4000:]
    two = done_in(tmp_path, ended)
    assert two.probe(1)["world_size"] == 2
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    assert two.answers() == one.answers()


@pytest.mark.parametrize("backend", ["c10d", pytest.param("standalone", marks=pytest.mark.slow)])
def test_a_killed_worker_is_restarted_and_continues_from_the_last_checkpoint(backend, whole, done_in, tmp_path):
    """Without a word in the environment about torchrun's store, which remembers the killed attempt."""
    file, one = whole
    if backend == "c10d":
        place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--max-restarts=1"]
        ended = fork(tmp_path, call(file, tmp_path)[2:], 2, place, FAIL="kill 4 1")
    else:
        ended = launch(tmp_path, call(file, tmp_path), 2, ["--standalone", "--max-restarts=1"], FAIL="kill 4 1")
    assert ended.code == 0, ended.output[-4000:]
    assert (tmp_path / "failed").exists()
    done = done_in(tmp_path, ended)
    assert done.probe(0)["start"] == 3
    assert done.losses() == pytest.approx(one.losses(), abs=1e-5)
    assert done.answers() == one.answers()


@pytest.mark.slow
def test_sigterm_to_all_nodes_saves_and_the_same_command_continues(whole, done_in, tmp_path):
    """What a scheduler does before it takes the machines away."""
    file, one = whole
    ended = launch_all(tmp_path, agents(free_port(), *call(file, tmp_path)), stop_at=tmp_path / "probe-0.json")
    assert ended.code != 0
    assert "interrupted; the same command continues" in ended.output, ended.output[-4000:]
    assert not (tmp_path / "run" / "result.json").exists()
    again = launch_all(tmp_path, agents(free_port(), *call(file, tmp_path)))
    assert again.code == 0, again.output[-4000:]
    done = done_in(tmp_path, again)
    assert done.probe(0)["start"] > 0
    assert done.losses() == pytest.approx(one.losses(), abs=1e-5)


# --- two machines, as far as the network knows


def root(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@pytest.fixture
def networks():
    """Two network namespaces that reach each other by a cable alone: (name, device, address) of each."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making network namespaces takes root and ip")
    mark = uuid4().hex[:6]
    nodes = [(f"dslight-{mark}-{i}", f"v{mark}{i}", f"10.77.{i // 2}.{i + 1}") for i in range(2)]
    try:
        for name, _, _ in nodes:
            root("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    try:
        root("ip", "link", "add", nodes[0][1], "type", "veth", "peer", "name", nodes[1][1])
        for name, device, address in nodes:
            root("ip", "link", "set", device, "netns", name)
            root("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            root("ip", "-n", name, "link", "set", device, "up")
            root("ip", "-n", name, "link", "set", "lo", "up")
        yield nodes
    finally:
        for name, _, _ in nodes:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=30)


@pytest.mark.slow
def test_two_machines_train_as_one_process(networks, whole, done_in, tmp_path):
    file, one = whole
    calls = []
    for node, (name, device, _) in enumerate(networks):
        torchrun = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}", f"--master-addr={networks[0][2]}"]
        run = ["-m", "torch.distributed.run", *torchrun, "--master-port=29500", *call(file, tmp_path)]
        enter = "import os, sys; os.execvp('ip', ['ip', 'netns', 'exec', *sys.argv[1:]])"
        inside = ["-c", enter, name, "env", f"GLOO_SOCKET_IFNAME={device}", sys.executable]
        calls.append([*inside, *run])
    ended = launch_all(tmp_path, calls)
    assert ended.code == 0, ended.output[-4000:]
    assert done_in(tmp_path, ended).losses() == pytest.approx(one.losses(), abs=1e-5)
