"""What a recipe may say of sharding."""

from __future__ import annotations

import pytest
import torch

from dslight.train import Sharded
from dslight.train.strategy import copies_of


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
