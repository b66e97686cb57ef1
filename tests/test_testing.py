"""The contract of vision encoders: timm's pass it, and for every clause there is an encoder that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from dslight.components import TimmEncoder
from dslight.components.vision_encoder import VisionEncoder
from dslight.nn.injector import inject
from dslight.testing import VisionEncoderContract

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}


class TestWithoutClassToken(VisionEncoderContract):
    def make(self) -> VisionEncoder:
        return TimmEncoder("vit_tiny_patch16_224", model_args={**SMALL, "class_token": False, "global_pool": ""})


class TestWithClassToken(VisionEncoderContract):
    def make(self) -> VisionEncoder:
        return TimmEncoder("vit_base_patch16_clip_224.openai", model_args=SMALL)


class TestWithRegistersOnAWideGrid(VisionEncoderContract):
    def make(self) -> VisionEncoder:
        return TimmEncoder("vit_small_patch14_reg4_dinov2", model_args={**SMALL, "img_size": [8, 24]})


class TestWithRotaryPositions(VisionEncoderContract):
    def make(self) -> VisionEncoder:
        return TimmEncoder("eva02_tiny_patch14_224", model_args={**SMALL, "global_pool": ""})


class Sound(VisionEncoder):
    """A transformer in plain torch that keeps every promise; each encoder below breaks one."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.grid, self.image_size, self.prefix_tokens = 32, (2, 4), (8, 16), 1
        self.mean, self.std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)
        self.patchify = nn.Conv2d(3, self.width, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, 1, self.width))
        self.position = nn.Parameter(torch.randn(1, 9, self.width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(self.width, 2, 64, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.norm = nn.LayerNorm(self.width)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.blocks

    def embed(self, pixels: Tensor) -> Tensor:
        patches = self.patchify(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(len(patches), -1, -1), patches], 1) + self.position

    def run(self, x: Tensor, depth: int) -> Tensor:
        for block in self.blocks[:depth]:
            x = block(x)
        return x

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        return self.norm(self.run(self.embed(pixels), depth))[:, 1:]


class TestSound(VisionEncoderContract):
    def make(self) -> VisionEncoder:
        return Sound()


class MeanOfBytes(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.mean = (123.7, 116.3, 103.5)


class AnotherGrid(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.grid = (2, 2)


class ForgottenPrefix(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.prefix_tokens = 0


class ColumnByColumn(Sound):
    def embed(self, pixels: Tensor) -> Tensor:
        patches = self.patchify(pixels).transpose(2, 3).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(len(patches), -1, -1), patches], 1) + self.position


class PrefixBehindThePatches(Sound):
    def embed(self, pixels: Tensor) -> Tensor:
        return super().embed(pixels).roll(-1, dims=1)


class NormalisedTwice(Sound):
    def normalise(self, pixels: Tensor) -> Tensor:
        return super().normalise(pixels) * 2 - 1


class SkippedLayer(Sound):
    def run(self, x: Tensor, depth: int) -> Tensor:
        return super().run(x, 1) if depth == 1 else self.blocks[2](self.blocks[0](x))


class TapsFromZero(Sound):
    def resolve_tap(self, tap):
        return super().resolve_tap(tap if tap == "final" or tap >= 0 else tap - 1)


class DropoutInEvaluation(Sound):
    def embed(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().embed(pixels), 0.1, training=True)


class EarlyExitOfItsOwn(Sound):
    def run(self, x: Tensor, depth: int) -> Tensor:
        return super().run(x if depth == 3 else x + 0.1, depth)


class TapsWithoutEnd(Sound):
    def resolve_tap(self, tap):
        return super().resolve_tap(tap) if tap == "final" else min(tap % 10, 3)


class TappableByMistake(Sound):
    tappable = False

    def resolve_tap(self, tap):
        return 3


class AllLayersAlways(Sound):
    def run(self, x: Tensor, depth: int) -> Tensor:
        return super().run(x, 3)


class SwallowsStacks(Sound):
    stackable = False

    def forward(self, pixels, taps=("final",), stacks=None, sites=()):
        return super().forward(pixels, taps)


class LayersButNoStacks(Sound):
    stackable = False


class DoubledStacks(Sound):
    def forward(self, pixels, taps=("final",), stacks=None, sites=()):
        return super().forward(pixels, taps, None if stacks is None else 2 * stacks, sites)


class StacksOnThePrefix(Sound):
    def forward(self, pixels, taps=("final",), stacks=None, sites=()):
        if stacks is None:
            return super().forward(pixels, taps)
        mask = torch.tensor([[True] * 8 + [False]]).expand(len(pixels), 9)  # off by one
        with inject(self.layers, mask, stacks.flatten(1, 2), sites):
            return super().forward(pixels, taps)


class LayersCalledBesideTheirHooks(Sound):
    def run(self, x: Tensor, depth: int) -> Tensor:
        for block in self.blocks[:depth]:
            x = block.forward(x)
        return x


class DitheredStacks(Sound):
    def forward(self, pixels, taps=("final",), stacks=None, sites=()):
        return super().forward(pixels, taps, None if stacks is None else stacks + 1e-3, sites)


class UnusedHead(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 10)


class WithoutGradient(Sound):
    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        with torch.no_grad():
            return super().encode(pixels, depth)


class TrainsWhenFrozen(Sound):
    def train(self, mode: bool = True):
        return nn.Module.train(self, mode)


class CentredOverTheBatch(Sound):
    def embed(self, pixels: Tensor) -> Tensor:
        x = super().embed(pixels)
        return x - x.mean(0)


class FloatConstant(Sound):
    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        features = super().encode(pixels, depth)
        return None if features is None else features + torch.ones(1, 1, 32)


class PinnedToTheCPU(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("code", torch.zeros(9, device="cpu"))


class KeepsALambda(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.activation = lambda x: x


class RandomOutsideOfItsState(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(1, 1, 32), persistent=False)

    def embed(self, pixels: Tensor) -> Tensor:
        return super().embed(pixels) * self.directions


class ForgottenUnit(Sound):
    @property
    def shard_units(self) -> list[nn.Module]:
        return list(self.blocks[:-1])


class OverlappingUnits(Sound):
    @property
    def shard_units(self) -> list[nn.Module]:
        return [self.blocks, *self.blocks]


BROKEN: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("it_is_a_vision_encoder", lambda: nn.Linear(2, 2), "Linear must subclass"),
    ("its_facts_are_set", MeanOfBytes, r"mean is .* of pixel values in 0\.\.1"),
    ("its_facts_are_set", LayersButNoStacks, "layers lists 3 modules, but stackable is False"),
    ("every_tap_has_the_promised_shape", AnotherGrid, "its grid and width promise"),
    ("every_layer_receives_prefix_and_patches", ForgottenPrefix, r"layer 0 receives \(2, 9, 32\).*prefix_tokens 0"),
    ("patches_come_row_by_row_behind_the_prefix", ColumnByColumn, "row 0, column 3 .* changes patch 6 most, not 3"),
    ("patches_come_row_by_row_behind_the_prefix", PrefixBehindThePatches, "put all prefix tokens before them"),
    ("pixels_are_normalised_by_mean_and_std", NormalisedTwice, "not twice"),
    ("neighbouring_taps_differ", SkippedLayer, "taps 1 and 2 are equal: layer 1 did not run"),
    ("negative_taps_count_from_the_end", TapsFromZero, "tap -1 is not tap 3"),
    ("a_tap_that_is_not_there_is_refused", TapsWithoutEnd, "tap 4 must raise a ValueError: it is beyond 3 layers"),
    ("a_tap_that_is_not_there_is_refused", TappableByMistake, "tap 0 must raise a ValueError: tappable is False"),
    ("layers_behind_the_last_tap_do_not_run", AllLayersAlways, r"for tap 0 the layers \[0, 1, 2\] run, \[0\] suffice"),
    ("stacks_are_refused_where_there_are_no_layers", SwallowsStacks, "stackable is False, so stacks must raise"),
    ("an_early_tap_is_the_same_whether_later_layers_run_or_not", DropoutInEvaluation, "nothing may be random in eval"),
    ("an_early_tap_is_the_same_whether_later_layers_run_or_not", EarlyExitOfItsOwn, r"depth=1\) must run"),
    ("a_stack_is_added_to_the_patches_alone", DoubledStacks, "layer 0 is not what is added"),
    ("a_stack_is_added_to_the_patches_alone", StacksOnThePrefix, "changes the prefix tokens"),
    ("a_stack_at_any_site_reaches_the_output", LayersCalledBesideTheirHooks, r"must call layers\[0\] itself"),
    ("zero_stacks_change_nothing", DitheredStacks, "stacks of zeros change"),
    ("gradients_reach_every_parameter", UnusedHead, r"no gradient reaches head\.weight, head\.bias"),
    ("gradients_reach_every_parameter", WithoutGradient, "must not detach"),
    ("a_frozen_encoder_stays_frozen", TrainsWhenFrozen, "are in training mode"),
    ("views_do_not_influence_each_other", CentredOverTheBatch, "depend on the other views"),
    ("bfloat16_goes_through", FloatConstant, r"tap final is torch\.float32"),
    ("it_is_built_without_memory_on_the_meta_device", PinnedToTheCPU, r"code have memory: name no device"),
    ("it_can_be_copied_and_pickled", KeepsALambda, "pickle fails .* keep lambdas"),
    ("its_weights_file_holds_all_that_it_has_learnt", RandomOutsideOfItsState, "keep everything random or learnt"),
    ("shard_units_cover_the_layers_once", ForgottenUnit, r"layers\[2\]\.\S+ is in no shard unit"),
    ("shard_units_cover_the_layers_once", OverlappingUnits, "must not overlap"),
]  # fmt: skip


@pytest.mark.parametrize(("clause", "make", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_an_encoder_that_breaks_a_clause_is_told_what_to_do(clause, make, message):
    class Contract(VisionEncoderContract):
        def make(self):
            return make()

    with pytest.raises((AssertionError, ValueError)) as failure:
        getattr(Contract(), f"test_{clause}")()
    assert re.search(message, str(failure.value)), failure.value


def test_there_is_an_encoder_that_breaks_it_for_every_clause():
    clauses = {name.removeprefix("test_") for name in vars(VisionEncoderContract) if name.startswith("test_")}
    assert clauses == {clause for clause, _, _ in BROKEN}


def test_a_contract_without_an_encoder_says_so():
    with pytest.raises(NotImplementedError, match=r"define make\(self\)"):
        VisionEncoderContract().test_its_facts_are_set()
