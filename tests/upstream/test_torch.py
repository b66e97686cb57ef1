"""What dslight expects of torch beyond its documentation. Where one of these fails, ``dslight/upstream/torch.py`` is to
be mended, and nothing else."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from transformers.modeling_outputs import BaseModelOutput

from dslight.upstream.torch import (
    INTERPOLATE,
    bytes_of,
    count_flops,
    fake_tensors,
    group_store,
    is_compiled,
    leaves,
    own_share,
    part_of_a_file,
    piece_of_a_checkpoint,
    real_tensors,
    replace_tensors,
    storage,
    versions_of,
    watch_operations,
)


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("mode", sorted(INTERPOLATE))
def test_antialiased_resizing_writes_into_the_memory_that_it_is_given(mode):
    pixels = torch.randint(0, 256, (1, 40, 30, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    out = torch.zeros(1, 16, 16, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    returned = INTERPOLATE[mode](pixels, (16, 16), False, out=out)
    assert returned.data_ptr() == out.data_ptr()
    assert out.stride() == (16 * 16 * 3, 1, 16 * 3, 3)
    torch.testing.assert_close(out, F.interpolate(pixels, size=(16, 16), mode=mode, antialias=True), rtol=0, atol=0)


def test_real_tensors_are_made_and_read_among_fake_ones():
    with fake_tensors():
        with real_tensors():
            bounds = torch.tensor([0, 3, 5]).cumsum(0)
        assert bounds.tolist() == [0, 3, 8]
        with pytest.raises(RuntimeError):  # what is computed of them outside is fake again
            bounds.diff().tolist()


@pytest.mark.parametrize("make", [torch.zeros, lambda *shape: torch.zeros(*shape, device="meta")], ids=["cpu", "meta"])
def test_views_are_known_by_their_storage(make):
    one, other = make(4, 4), make(4, 4)
    assert storage(one) == storage(one[1:]) == storage(one.detach().view(16)) != storage(other)


def test_fake_tensors_have_a_device_and_a_storage_but_no_memory():
    real = torch.ones(8)
    with fake_tensors():
        made = torch.empty(1 << 40, 1 << 10)  # 4 PiB
        assert made.device.type == "cpu"
        assert storage(made) == storage(made.T) != storage(torch.empty(1))
        assert (made[0, 0] + real).shape == (8,)  # a real one among them


@pytest.mark.parametrize("around", [nullcontext, fake_tensors], ids=["real", "fake"])
def test_products_of_attention_are_counted_on_a_cpu_too(around):
    batch, heads, queries, keys, width = 2, 3, 8, 12, 16
    products = 2 * batch * heads * queries * keys * width
    with around():
        query = torch.ones(batch, heads, queries, width, requires_grad=True)
        key = torch.ones(batch, heads, keys, width)
        with count_flops() as forward:
            out = F.scaled_dot_product_attention(query, key, key)
        with count_flops() as backward:
            out.sum().backward()
    assert forward.get_total_flops() == 2 * products
    assert backward.get_total_flops() == 5 * products  # the scores anew, and two for each of both products


def test_tensors_of_a_sharded_model_get_memory_in_place_and_tied_ones_stay_tied(alone):
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    state = set(model.state_dict())
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    replace_tensors(model, lambda tensor: torch.ones_like(tensor, device="cpu"))
    assert set(model.state_dict()) == state
    assert model[1].weight is model[0].weight
    assert [p.requires_grad for p in model.parameters()] == [True, False, True]
    assert not any(value.is_meta for value in model.state_dict().values())
    assert model.eval()(torch.tensor([1])).allclose(torch.tensor(1 + 3 / (1 + 1e-5) ** 0.5))  # FSDP2 has seen them


def test_the_own_share_of_a_tensor_is_known(alone):
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    assert own_share(distribute_tensor(torch.zeros(6, 4), mesh, [Replicate(), Shard(0)])) == ((6, 4), (0, 0))


def test_what_is_nested_is_found():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [leaf for leaf in leaves(({"x": [a, None]}, (b, 4), c)) if torch.is_tensor(leaf)] == [a, b, c]
    assert leaves(BaseModelOutput(last_hidden_state=b)) == [b]  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_table_of_contents_says_where_pieces_lie(tmp_path):
    save({"weight": torch.arange(3.0)}, checkpoint_id=tmp_path, no_dist=True)
    (piece,) = FileSystemReader(tmp_path).read_metadata().storage_data.values()
    made = piece_of_a_checkpoint(piece.relative_path, piece.offset, piece.length)
    assert made == piece
    with (tmp_path / made.relative_path).open("rb") as file:
        tensor = torch.load(part_of_a_file(file, made.offset, made.length), weights_only=True)
    assert torch.equal(tensor, torch.arange(3.0))


def test_the_store_of_the_processes_is_shared_over_another_connection(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        one, other = group_store(), group_store()
        one.set("key", "value")
        assert other.get("key") == b"value"
        assert other.check(["key"])
        assert one.compare_set("key", "", "late") == b"value"
    finally:
        dist.destroy_process_group()


def test_operations_are_seen_by_name_with_their_tensors_and_whether_they_draw():
    seen = []
    with torch.device("meta"), watch_operations(lambda name, args, random: seen.append((name, len(args), random))):
        torch.cat([torch.empty(1, 2), torch.empty(1, 3)], dim=1)
        torch.rand(3).argsort()
    assert ("aten.cat.default", 2, False) in seen
    assert [name for name, _, random in seen if random] == ["aten.rand.default"]


def test_a_module_knows_whether_something_in_it_is_compiled():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not is_compiled(model)
    model[1].compile(backend="eager")
    assert is_compiled(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_the_bytes_of_a_tensor_are_those_of_its_values_wherever_they_lie(dtype):
    tensor = torch.arange(6).view(2, 3).to(dtype)
    assert bytes(bytes_of(tensor)) == bytes(bytes_of(tensor.T.contiguous().T)) == bytes(tensor.untyped_storage())
    assert bytes(bytes_of(tensor[:0])) == b""


def test_tensors_that_are_written_into_are_noticed_and_those_that_are_read_are_not():
    layer = nn.Linear(2, 2)
    before = versions_of(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    assert versions_of(layer.parameters()) == before
    with torch.no_grad():
        layer.bias.add_(1)
    assert versions_of(layer.parameters()) != before
