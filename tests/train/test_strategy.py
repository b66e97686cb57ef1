"""What a recipe may say of sharding."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from dslight.train import Sharded, parallel
from dslight.train.strategy import REPLICATE, SHARD, copies_of


def test_copies_divide_the_processes():
    assert [copies_of(1, 8, 2), copies_of(4, 8, 2), copies_of("nodes", 24, 3)] == [1, 4, 3]
    with pytest.raises(
        ValueError, match=r"^replicate: 3 copies of the model cannot share 8 processes evenly; choose a "
    ):
        copies_of(3, 8, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicate": 0}, "replicate: must be at least 1 copy of the model, got 0"),
        ({"param_dtype": "int8"}, "param_dtype: 'int8' is no floating-point dtype of torch"),
        (
            {"async_save": True, "save_distributed_checkpoint": False},
            "async_save: true needs save_distributed_checkpoint: true",
        ),
        ({"reduce_dtype": "half a float"}, "reduce_dtype: 'half a float' is no floating-point dtype of torch"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sharded(**arguments)


def test_the_dtypes_are_those_of_the_policy():
    policy = Sharded(param_dtype="bfloat16", reduce_dtype="float32").policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert Sharded().policy.param_dtype is None


def test_every_group_of_parameters_is_offloaded_where_that_is_asked(monkeypatch):
    seen = []
    monkeypatch.setattr(parallel, "fully_shard", lambda module, **options: seen.append(options["offload_policy"]))
    monkeypatch.setattr(parallel, "register_fsdp_forward_method", lambda *_: None)
    part: Any = nn.Linear(2, 2)
    part.shard_units = [nn.Linear(2, 2), nn.Linear(2, 2)]
    mesh: Any = MagicMock(mesh_dim_names=(REPLICATE, SHARD))
    mesh.size.return_value = 1
    for offload, kind in ((True, CPUOffloadPolicy), (False, OffloadPolicy)):
        seen.clear()
        parallel.shard(nn.Linear(2, 2), {"part": part}, mesh, offload=Sharded(offload=offload).offload)
        assert [type(one) for one in seen] == [kind] * 3


def test_an_offloaded_share_lies_in_the_memory_of_the_host_and_buffers_on_the_device():
    strategy: Any = Sharded(offload=True)
    strategy.parallel_devices = [torch.device("meta")]  # as good as a GPU for where things are
    strategy.cluster_environment = MagicMock(local_rank=lambda: 0)
    strategy._lightning_module = None
    model: Any = nn.BatchNorm1d(2)
    strategy.model = model
    strategy.model_to_device()
    assert strategy.parameter_device.type == "cpu"
    assert model.weight.device.type == "cpu"
    assert model.running_mean.device.type == "meta"
