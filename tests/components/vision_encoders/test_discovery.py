"""What a model is, found out on the meta device: small models in plain torch, each with one thing of its own."""

import pytest
import torch
from torch import nn

from dslight.components.vision_encoders.discovery import discover
from dslight.components.vision_encoders.stream import VIEWS, drop, first_layers


class Layer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.mlp(x)


class Plain(nn.Module):
    """Three layers over 2 x 3 patches and two tokens before them, a norm, and a head that nothing reads."""

    def __init__(self):
        super().__init__()
        self.patchify = nn.Conv2d(3, 8, 4, 4)
        self.first, self.second = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 1, 8))
        self.stages = nn.ModuleDict({"one": nn.ModuleList(Layer() for _ in range(3))})
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.mask_token = nn.Parameter(torch.zeros(1, 8))

    def embed(self, x):
        patches = self.patchify(x).flatten(2).transpose(1, 2)
        patches = torch.cat([self.first.expand(len(x), -1, -1), patches], dim=1)
        return torch.cat([self.second.expand(len(x), -1, -1), patches], dim=1)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.stages["one"]:
            x = layer(x)
        return self.norm(x)


def found(kind, grid=(2, 3), **options):
    with torch.device("meta"):
        model = kind()
    pixels = torch.empty(VIEWS, 3, 8, 12, device="meta")
    return model, discover(model, lambda: model(pixels), lambda seen, tokens: grid, **options)


def test_a_plain_transformer_is_what_it_is():
    _, stream = found(Plain)
    assert (stream.layers, stream.width, stream.grid) == ("stages.one", 8, (2, 3))
    assert (stream.prefix, stream.outside, stream.behind, stream.early) == (2, 2, ("norm",), True)
    assert dict(stream.dropped) == {"head": "identity", "mask_token": "none"}


def test_what_is_dropped_changes_no_feature_and_leaves_no_idle_parameter():
    _, stream = found(Plain)
    model, pixels = Plain(), torch.randn(1, 3, 8, 12)
    before = model(pixels)
    drop(model, stream.dropped)
    assert torch.equal(model(pixels), before)
    stream.patches(model(pixels)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_fewer_layers_run_while_a_block_lasts():
    model, ran = Plain(), []
    for index, layer in enumerate(model.stages["one"]):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    with first_layers(model, "stages.one", 2):
        model(torch.randn(1, 3, 8, 12))
    assert (ran, len(model.stages["one"])) == ([0, 1], 3)


class Mapped(Plain):
    def forward(self, x):
        return super().forward(x)[:, 2:].unflatten(1, (2, 3))


class ChannelsFirst(Mapped):
    def forward(self, x):
        return super().forward(x).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [Mapped, ChannelsFirst])
def test_maps_are_flattened_row_by_row(kind):
    _, stream = found(kind)
    torch.manual_seed(0)
    model, pixels = kind(), torch.randn(2, 3, 8, 12)
    tokens = stream.patches(model(pixels))
    assert torch.equal(tokens, Plain.forward(model, pixels)[:, 2:])


class UsedAllTheSame(Plain):
    """The model reads a parameter that the patches do not depend on."""

    def forward(self, x):
        x = super().forward(x)
        self.pooled = x.mean(1) + self.mask_token.abs()
        return x


def test_a_parameter_that_is_read_becomes_a_buffer():
    _, stream = found(UsedAllTheSame)
    assert dict(stream.dropped)["mask_token"] == "buffer"
    model = UsedAllTheSame()
    drop(model, stream.dropped)
    assert "mask_token" in dict(model.named_buffers())
    assert "mask_token" in model.state_dict()


class NormApart(Plain):
    """As CLIP: the last norm goes over the first token alone."""

    def forward(self, x):
        x = self.embed(x)
        for layer in self.stages["one"]:
            x = layer(x)
        self.norm(x[:, 0])
        return x


def test_a_norm_of_pooled_features_is_found():
    assert found(NormApart, norm_apart=True)[1].norm == "norm"
    assert found(NormApart)[1].norm is None
    assert found(Plain, norm_apart=True)[1].norm is None


class Normalises(Plain):
    def embed(self, x):
        return super().embed(x - torch.zeros(3, 1, 1))


def test_a_model_that_takes_the_mean_off_its_pixels_is_seen():
    assert found(Normalises)[1].normalises
    assert not found(Plain)[1].normalises


class TokensBehind(Plain):
    def embed(self, x):
        x = super().embed(x)
        return torch.cat([x, self.first.expand(len(x), -1, -1)], dim=1)


class Random(Plain):
    def embed(self, x):
        return super().embed(x) + torch.rand(1)


class Twice(Plain):
    def forward(self, x):
        x = self.embed(x)
        for _ in range(2):
            for layer in self.stages["one"]:
                x = layer(x)
        return x


class Stages(Plain):
    def __init__(self):
        super().__init__()
        self.more = nn.ModuleList(Layer(16) for _ in range(3))
        self.merge = nn.Linear(16, 16)

    def forward(self, x):
        x = super().forward(x)
        x = self.merge(x.unflatten(1, (-1, 2)).flatten(2))
        for layer in self.more:
            x = layer(x)
        return x


class Pooled(Plain):
    def forward(self, x):
        return super().forward(x).mean(1)


class Fewer(Plain):
    def forward(self, x):
        return super().forward(x)[:, 2:].unflatten(1, (3, 2)).mean(2)


class Fails(Plain):
    def forward(self, x, mask):
        return x


class OneRow(Plain):
    """The patches of all views behind one another, as Pixtral has them."""

    def embed(self, x):
        return super().embed(x).flatten(0, 1)[None]


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 1))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TokensBehind, "puts 1 tokens behind its 6 patches"),
        (Random, r"draws at random in evaluation mode \(aten.rand"),
        (Twice, "has no transformer blocks .*stages.one.0 is called 2 times"),
        (Stages, "has stages of its own: the layers of stages.one"),
        (Pooled, r"gives \[B, 8\], and no features of patches"),
        (Fewer, r"has an output of \[B, 3, 8\], which is no longer on the 2 x 3 grid"),
        (OneRow, r"has no transformer blocks .*stages.one takes \[1, 16, 8\]"),
        (Fails, "cannot be run on an image alone: .*mask"),
        (Convolutions, r"has no transformer blocks .*: layers takes \[B, 3, 8, 12\] and gives \[B, 8, 2, 3\]"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(kind, message):
    with pytest.raises(ValueError, match=message):
        found(kind)


def test_a_grid_of_more_patches_than_tokens_is_refused():
    with pytest.raises(ValueError, match="has 8 tokens in its layers' stream, and 3 x 3 patches"):
        found(Plain, grid=(3, 3))
