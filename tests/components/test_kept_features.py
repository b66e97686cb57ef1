"""A stacking that asks what stands in the encoder's place gets what the encoder would give, computed once."""

import pytest
import torch

from dslight.components import DeepStack, DeepStackHD, DeepStackL, DeepStackV, LowResolution, Stack
from dslight.components.kept_features import Keeper, encoder_digest
from dslight.errors import UserError
from dslight.features.store import FeatureStore
from dslight.features.views import KnownImage, KnownViews, view_key

HERE = type("Trainer", (), {"precision": "32-true", "strategy": None})()


def known(views, keeper=None, grids=None) -> KnownViews:
    """As a data worker makes them, with what ``keeper`` has kept."""
    images, start = [], 0
    name, sets = keeper.sets(HERE) if keeper else ("", {})
    for grid, count in zip(views.grids, views.per_image, strict=True):
        pixels = views.pixels[start : start + count]
        image = KnownImage([view_key(view) for view in pixels], rows=list(range(count)))
        if keeper:
            asked = keeper.asked([grid], views.fine)[grid]
            found = {(n, tap): keeper.store.feature(sets[tap], image.keys[n]) for n, tap in asked}
            image.features = {key: feature for key, feature in found.items() if feature is not None}
            image.rows = sorted({n for (n, _), feature in found.items() if feature is None})
        image.pixels = pixels[image.rows]
        images.append(image)
        start += count
    pixels = torch.cat([image.pixels for image in images])
    return KnownViews.of(images, pixels, views.grids, views.fine, views.sizes, name)


STACKINGS = {
    "low": lambda: LowResolution(),
    "deepstack_l": lambda: DeepStackL(crops=4, start=1),
    "an earlier tap": lambda: DeepStackL(crops=4, start=1, tap=-2),
    "taps of their own": lambda: DeepStack([Stack([1], view="base", sampler="identity", tap=1), Stack([2, 3])], tap=3),
    "stacks alone": lambda: DeepStack([Stack([1, 2])], base="zero"),
    "fine crops": lambda: DeepStackHD(up=2),
}


@pytest.fixture
def make(tiny_encoder, tmp_path):
    def made(stacking, **args):
        encoder = tiny_encoder(**args)
        encoder.freeze()
        return Keeper(encoder, stacking, FeatureStore(tmp_path / "features", 10**9))

    return made


@pytest.fixture
def calls(monkeypatch):
    """How many views the encoder has seen, call by call."""
    from dslight.components import VisionEncoder

    seen, read = [], VisionEncoder.read

    def counted(self, pixels, *args):
        seen.append(len(pixels))
        return read(self, pixels, *args)

    monkeypatch.setattr(VisionEncoder, "read", counted)
    return seen


@pytest.mark.parametrize("name", STACKINGS)
def test_the_maps_are_the_encoders_own_and_it_runs_once(name, make, make_views, calls):
    stacking = STACKINGS[name]()
    keeper = make(stacking)
    views = make_views([(2, 2), (1, 2), (2, 2)], fine=stacking.fine)
    expected = stacking(keeper.encoder, views)
    calls.clear()
    for again in range(2):
        shown = known(views, keeper)
        maps = stacking(keeper.of(shown, HERE), shown.numbered())
        for ours, theirs in zip(maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
        assert bool(calls) == (not again)
        assert len(shown.pixels) == 0 or not again
        calls.clear()


def test_of_a_batch_only_what_is_new_is_computed(make, make_views, calls):
    stacking = DeepStackL(crops=4, start=1)
    keeper = make(stacking)
    first, both = make_views([(2, 2)]), make_views([(2, 2), (2, 2)])
    shown = known(first, keeper)
    stacking(keeper.of(shown, HERE), shown.numbered())
    both.pixels[:5] = first.pixels
    calls.clear()
    shown = known(both, keeper)
    maps = stacking(keeper.of(shown, HERE), shown.numbered())
    assert calls == [5]
    for ours, theirs in zip(maps, stacking(keeper.encoder, both), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_stacking_that_looks_at_the_base_view_alone_shares_it(make, make_views, calls):
    deep, low = DeepStackL(crops=4, start=1), LowResolution()
    keeper, views = make(deep), make_views([(2, 2)])
    shown = known(views, keeper)
    deep(keeper.of(shown, HERE), shown.numbered())
    calls.clear()
    other = Keeper(keeper.encoder, low, keeper.store)
    shown = known(views, other)
    low(other.of(shown, HERE), shown.numbered())
    assert calls == []


def test_a_blank_view_runs_nothing(make, make_views, calls):
    stacking = DeepStackL(crops=4, start=1)
    keeper, views = make(stacking), make_views([(1, 1)])
    shown = keeper.blank(views)
    maps = stacking(keeper.of(shown, HERE), shown.numbered())
    assert calls == []
    assert all(one.abs().sum() == 0 for one in maps)
    assert [one.shape for one in maps] == [one.shape for one in stacking(keeper.encoder, views)]


def test_an_encoder_is_known_by_its_weights_settings_and_precision(tiny_encoder):
    def digest(how="32-true", change=None, **args):
        encoder = tiny_encoder(**args)
        if change is not None:
            change(encoder)
        return encoder_digest(encoder, how)

    def last_bit(encoder):
        with torch.no_grad():
            next(encoder.parameters()).view(-1)[0] += 1e-7

    assert digest() == digest()
    found = {digest(), digest("bf16-mixed"), digest(change=last_bit), digest(depth=3), digest(num_heads=4)}
    assert len(found) == 5
    assert digest(change=lambda e: e.to(torch.bfloat16)) not in found


def test_weights_that_change_after_features_were_read_are_an_error(make, make_views):
    stacking = LowResolution()
    keeper = make(stacking)
    shown = known(make_views([(0, 0)]), keeper)
    with torch.no_grad():
        next(keeper.encoder.parameters()).mul_(2)
    with pytest.raises(ValueError, match=r"data\.keep_features: .* weights were changed"):
        keeper.of(shown, HERE)


def test_what_would_not_stay_the_same_is_refused_in_a_sentence(tiny_encoder, tmp_path):
    encoder, store = tiny_encoder(), FeatureStore(tmp_path, 10**9)
    with pytest.raises(ValueError, match=r"data\.keep_features: the vision encoder trains \(stage\.train\.vision_enc"):
        Keeper(encoder, LowResolution(), store)
    encoder.freeze()
    with pytest.raises(ValueError, match=r"data\.keep_features: this stacking adds stacks inside the vision encoder"):
        Keeper(encoder, DeepStackV(crops=2, start=1), store)


def test_a_strangers_stacking_that_writes_into_the_encoder_is_found_out(tiny_encoder, tmp_path):
    """By what it asks, whatever it calls its stacks."""

    class Mine(LowResolution):
        def forward(self, encoder, views):
            zeros = torch.zeros(1, len(views), encoder.grid[0] * encoder.grid[1], encoder.width)
            (found,) = encoder(views.base(), stacks=zeros, sites=(1,))
            return [found.unflatten(1, encoder.grid)]

    encoder = tiny_encoder()
    encoder.freeze()
    with pytest.raises(UserError, match=r"data\.keep_features: this stacking adds stacks inside the vision encoder"):
        Keeper(encoder, Mine(), FeatureStore(tmp_path, 10**9)).asked([(0, 0)], 0)
