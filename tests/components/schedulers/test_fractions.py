"""Taps and sites as fractions of depth: the nearest layer, in parts of any depth."""

import pytest
import torch

from dslight.components import CrossAttention, DeepStack, DeepStackL, DeepStackTaps, FusedEncoder, LowResolution, Stack
from dslight.components.vision_encoder import at_depth
from dslight.types import Views


def test_a_fraction_is_the_nearest_layer_and_halves_go_up():
    """By hand: 0.33 of 24 is 7.92, 0.66 is 15.84; 0.5 of 27 is 13.5; 0.1 of 4 is 0.4."""
    assert [at_depth(place, 24) for place in (0.0, 0.33, 0.66, 1.0)] == [0, 8, 16, 24]
    assert [at_depth(0.5, depth) for depth in (24, 27)] == [12, 14]
    assert at_depth(0.1, 4) == 0
    assert [at_depth(place, 24) for place in (1, -2)] == [1, -2]  # no point: a layer


@pytest.mark.parametrize("tap", [1.5, -0.5, float("nan")])
def test_a_tap_outside_of_the_depth_is_refused(tap, patch_encoder):
    with pytest.raises(ValueError, match=f"tap: tap {tap} is no fraction of depth: 0.0 to 1.0"):
        LowResolution(tap).check(patch_encoder, 8)


def test_taps_and_sites_are_layers_of_the_parts_that_are_there(patch_encoder):
    """Four layers in the encoder, ten in the language model, then four in both."""
    stacking = DeepStackTaps([0.3, 0.6, 1.0], sites=[0.125, 0.5, 0.8], tap=0.0)
    stacking.check(patch_encoder, 10)
    assert stacking.sites == (1, 5, 8)
    assert [patch_encoder.resolve_tap(tap) for tap in stacking.taps()] == [0, 1, 2, 4]
    assert stacking.placements == [
        ("language_model", 0, "base tokens, in the sequence (tap 0)"),
        ("language_model", 1, "+ stack 1 (base, identity, tap 0.3 = 1)"),
        ("language_model", 5, "+ stack 2 (base, identity, tap 0.6 = 2)"),
        ("language_model", 8, "+ stack 3 (base, identity, tap -1)"),
    ]
    stacking.check(patch_encoder, 4)
    assert stacking.sites == (1, 2, 3)


@torch.no_grad()
def test_fractions_read_what_their_layers_read(patch_encoder):
    """Also the whole depth beside layer 1, which are one number in Python."""
    views = Views(torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8), [(0, 0), (0, 0)])
    asked, meant = DeepStackTaps([1, 0.5, 1.0], tap=[1.0, 0.0, 1]), DeepStackTaps([1, 2, 4], tap=[4, 0, 1])
    for stacking in (asked, meant):
        stacking.check(patch_encoder, 8)
    found, expected = asked(patch_encoder, views), meant(patch_encoder, views)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[1], found[3])


def test_after_counts_from_the_fraction(patch_encoder):
    stacking = DeepStack([Stack([0.5], "base", "identity", after=True)])
    stacking.check(patch_encoder, 8)
    assert stacking.sites == (5,)


def test_stacks_inside_of_the_encoder_leave_it_at_the_layer_of_their_fraction(patch_encoder):
    stacking = DeepStack(encoder_stacks=[Stack([0.5, 0.75])])
    stacking.check(patch_encoder, 2)
    assert (stacking.encoder_sites, stacking.encoder_stacks[0].tap) == ((2, 3), 2)


def test_blocks_beside_the_sequence_stand_at_fractions_too(patch_encoder):
    stacking = CrossAttention(sites=[0.25, 0.75])
    stacking.check(patch_encoder, 32)
    assert stacking.attends == (8, 24)
    with pytest.raises(ValueError, match=r"sites: 1.5 is no fraction of depth"):
        CrossAttention(sites=[1.5])


def test_a_site_behind_the_last_layer_is_refused(patch_encoder):
    """What is at the whole depth is the output, and no layer takes it in."""
    with pytest.raises(ValueError, match="sites: 1 stack at layer 8 need 9 layers; the language model has 8"):
        DeepStackL(sites=[1.0]).check(patch_encoder, 8)
    with pytest.raises(ValueError, match=r"sites: 2.0 is no fraction of depth, at most 1.0"):
        DeepStackL(sites=[0.5, 2.0])


def test_encoders_of_several_depths_are_read_at_the_same_part_of_each(patch_encoder):
    other = type(patch_encoder)()
    other.blocks = other.blocks[:2]
    fused = FusedEncoder([patch_encoder, other])
    assert [encoder.resolve_tap(0.5) for encoder in fused._encoders] == [2, 1]
    pixels = torch.randint(0, 255, (1, 3, 48, 48), dtype=torch.uint8)
    expected = torch.cat([patch_encoder(pixels, taps=[2])[0], other(pixels, taps=[1])[0]], dim=-1)
    assert torch.equal(fused(pixels, taps=[0.5])[0], expected)
