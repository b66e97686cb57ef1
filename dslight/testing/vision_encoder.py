"""What a vision encoder promises: stacking relies on taps and shapes, recipes on building without memory, sharding on
gradients that reach every parameter. It is judged through ``forward`` and ``layers``, so that any way to write one may
pass.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslight.components.component import save_weights
from dslight.components.vision_encoder import VisionEncoder


class VisionEncoderContract:
    """The promises of :class:`~dslight.components.VisionEncoder`; subclass it and define :meth:`make`.

    Clauses on taps hold for encoders that are ``tappable``, clauses on layers and stacks for those that are
    ``stackable``; of the others they ask that what does not work is refused.

    Attributes:
        atol: largest difference between values that ought to be equal, in float32.
    """

    atol = 1e-4

    def make(self) -> VisionEncoder:
        """A new encoder, without pretrained weights; called at least once per test."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the encoder to test")

    # --- shapes and facts

    def test_it_is_a_vision_encoder(self) -> None:
        encoder = self.make()
        assert isinstance(encoder, VisionEncoder), (
            f"{type(encoder).__name__} must subclass dslight.components.VisionEncoder"
        )

    def test_its_facts_are_set(self) -> None:
        encoder = self.make()
        for name in ("width", "grid", "image_size", "prefix_tokens", "mean", "std"):
            assert hasattr(encoder, name), f"set self.{name} in __init__"
        for name in ("grid", "image_size"):
            value = getattr(encoder, name)
            whole = len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)
            assert whole, (
                f"{name} is {value!r}; it must be two positive whole numbers, (rows, columns) or (height, width)"
            )
        for name in ("mean", "std"):
            value = getattr(encoder, name)
            numbers = len(value) == 3 and all(0 <= number <= 1 for number in value)
            assert numbers, f"{name} is {value!r}; it must be three numbers, of pixel values in 0..1 (not 0..255)"
        assert all(number > 0 for number in encoder.std), f"std is {encoder.std!r}; a channel is divided by 0"
        if encoder.stackable:
            assert len(encoder.layers) > 0, (
                "layers is empty; it must list the transformer's layers in order (or set stackable = False)"
            )
        else:
            assert len(encoder.layers) == 0, (
                f"layers lists {len(encoder.layers)} modules, but stackable is False: without layers DeepStack-V is "
                f"refused before any weight is read"
            )

    def test_every_tap_has_the_promised_shape(self) -> None:
        encoder = self._eval()
        taps = [*_taps(encoder), "final"]
        for tap, features in zip(taps, encoder(pixels(encoder), taps=taps), strict=True):
            expected = (2, encoder.grid[0] * encoder.grid[1], encoder.width)
            assert features.shape == expected, (
                f"tap {tap} has shape {tuple(features.shape)}, grid {encoder.grid} and width {encoder.width} promise "
                f"{expected}: correct the fact, or what encode returns"
            )

    def test_every_layer_receives_prefix_and_patches(self) -> None:
        encoder = self._eval()
        expected = (2, encoder.prefix_tokens + encoder.grid[0] * encoder.grid[1], encoder.width)
        for site in range(encoder.depth):
            got = tuple(_stream(encoder, pixels(encoder), site).shape)
            assert got == expected, (
                f"layer {site} receives {got}, but prefix_tokens {encoder.prefix_tokens}, grid {encoder.grid} and "
                f"width {encoder.width} promise {expected}: correct the fact, or what `layers` lists"
            )

    def test_patches_come_row_by_row_behind_the_prefix(self) -> None:
        encoder = self._eval()
        rows, columns = encoder.grid
        height, width = encoder.image_size[0] // rows, encoder.image_size[1] // columns
        before = pixels(encoder, 1)
        for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)):
            after = before.clone()
            spot = after[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
            spot.copy_(255 - spot)
            taps = [0] if encoder.tappable else ["final"]
            (old,), (new,) = encoder(before, taps=taps), encoder(after, taps=taps)
            change = (new - old).abs().sum(-1)[0]
            if not encoder.tappable:  # a convolution carries the change around: only corners are told apart
                inner = torch.ones(rows, columns, dtype=torch.bool)
                inner[:: rows - 1 or 1, :: columns - 1 or 1] = False
                change = change.masked_fill(inner.flatten(), 0)
            changed = int(change.argmax())
            assert changed == row * columns + column, (
                f"changing the image at row {row}, column {column} of grid {encoder.grid} changes patch {changed} "
                f"most, not {row * columns + column}: order the patches row by row, put all prefix tokens before them, "
                f"and count these in prefix_tokens"
            )

    def test_pixels_are_normalised_by_mean_and_std(self) -> None:
        encoder = self._eval()
        shape = (1, 3, 1, 1)
        colour = (torch.tensor(encoder.mean) * 255).round().to(torch.uint8).view(shape)
        expected = (colour.float() / 255 - torch.tensor(encoder.mean).view(shape)) / torch.tensor(encoder.std).view(
            shape
        )
        got = encoder.normalise(colour.expand(1, 3, *encoder.image_size))
        assert torch.allclose(got.float(), expected.expand_as(got), atol=0.02), (
            "normalise does not give (pixel / 255 - mean) / std: do not normalise anywhere else, and not twice"
        )

    # --- taps

    def test_neighbouring_taps_differ(self) -> None:
        encoder = self._eval()
        features = encoder(pixels(encoder), taps=_taps(encoder)) if encoder.tappable else []
        for layer, (before, after) in enumerate(pairwise(features)):
            assert not torch.equal(before, after), (  # a layer scale of 1e-5 leaves little, but not nothing
                f"taps {layer} and {layer + 1} are equal: layer {layer} did not run, or encode does not go through "
                f"`layers`"
            )

    def test_negative_taps_count_from_the_end(self) -> None:
        encoder = self._eval()
        if not encoder.stackable:  # several encoders count each from its own end
            return
        for tap in range(-1, -encoder.depth - 2, -1):
            negative, positive = encoder(pixels(encoder), taps=[tap, encoder.depth + 1 + tap])
            assert torch.equal(negative, positive), f"tap {tap} is not tap {encoder.depth + 1 + tap}"

    def test_a_tap_that_is_not_there_is_refused(self) -> None:
        encoder = self._eval()
        deepest = encoder.resolve_tap("final")
        for tap in (deepest + 1, -deepest - 2) if encoder.tappable else (0, -1, -2):
            why = f"it is beyond {deepest} layers" if encoder.tappable else "tappable is False"
            assert _refused(encoder, taps=[tap]), f"tap {tap} must raise a ValueError: {why}"

    def test_an_early_tap_is_the_same_whether_later_layers_run_or_not(self) -> None:
        encoder = self._eval()
        for tap in _taps(encoder):
            (alone,) = encoder(pixels(encoder), taps=[tap])
            beside, _ = encoder(pixels(encoder), taps=[tap, "final"])
            assert torch.allclose(alone, beside, atol=self.atol), (
                f"tap {tap} alone differs from tap {tap} beside `final`: encode(pixels, depth={max(tap, 1)}) must run "
                f"the same first layers as encode(pixels, depth={encoder.depth}), and nothing may be random "
                f"in eval mode"
            )

    def test_layers_behind_the_last_tap_do_not_run(self) -> None:
        encoder = self._eval()
        for tap in range(encoder.depth):
            ran = _layers_run(encoder, tap)
            needed = list(range(max(tap, 1)))  # the embedding is read where layer 0 is entered
            assert ran == needed, (
                f"for tap {tap} the layers {ran} run, {needed} suffice: encode(pixels, depth) must end behind `depth` "
                f"layers, or DeepStack-V pays for crops that no one looks at"
            )

    # --- stacking inside the encoder (DeepStack-V)

    def test_stacks_are_refused_where_there_are_no_layers(self) -> None:
        encoder = self._eval()
        if not encoder.stackable:
            assert _refused(encoder, stacks=_stacks(encoder, 1), sites=[0]), (
                "stackable is False, so stacks must raise a ValueError: do not override forward"
            )

    def test_a_stack_is_added_to_the_patches_alone(self) -> None:
        encoder = self._eval()
        for site in range(encoder.depth):
            stacks = _stacks(encoder, 1)
            plain = _stream(encoder, pixels(encoder), site)
            stacked = _stream(encoder, pixels(encoder), site, stacks=stacks, sites=[site])
            prefix = encoder.prefix_tokens
            assert torch.equal(stacked[:, :prefix], plain[:, :prefix]), (
                f"a stack at layer {site} changes the prefix tokens: put them before the patches and count them in "
                f"prefix_tokens"
            )
            assert torch.allclose(stacked[:, prefix:], plain[:, prefix:] + stacks[0], atol=self.atol), (
                f"a stack at layer {site} is not what is added to the patches at its input: do not override forward"
            )

    def test_a_stack_at_any_site_reaches_the_output(self) -> None:
        encoder = self._eval()
        (plain,) = encoder(pixels(encoder))
        for site in range(encoder.depth):
            (stacked,) = encoder(pixels(encoder), stacks=_stacks(encoder, 1), sites=[site])
            assert not torch.allclose(stacked, plain, atol=self.atol), (
                f"a stack at layer {site} does not change `final`: encode must call layers[{site}] itself, with its "
                f"hidden states as first argument (hooks do not run when layer.forward is called)"
            )

    def test_zero_stacks_change_nothing(self) -> None:
        encoder = self._eval()
        if not encoder.stackable:
            return
        sites = list(range(encoder.depth))
        (plain,) = encoder(pixels(encoder))
        (stacked,) = encoder(pixels(encoder), stacks=torch.zeros_like(_stacks(encoder, len(sites))), sites=sites)
        assert torch.equal(stacked, plain), (
            "stacks of zeros change `final`: nothing but the stacks may be added at a site"
        )

    # --- training

    def test_gradients_reach_every_parameter(self) -> None:
        encoder = self.make()
        encoder.requires_grad_(True)
        (features,) = encoder(pixels(encoder))
        assert features.requires_grad, "`final` carries no gradient: encode must not detach, nor run under no_grad"
        (features * torch.randn_like(features)).sum().backward()
        unused = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
        assert not unused, (
            f"no gradient reaches {', '.join(unused[:8])}: a parameter that `final` does not use cannot be trained, "
            f"and breaks resuming a sharded run; remove it (pooling heads, classifiers) in __init__"
        )

    def test_a_frozen_encoder_stays_frozen(self) -> None:
        encoder = self.make()
        encoder.freeze()
        encoder.train()
        learning = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        assert not learning, f"after freeze() {', '.join(learning[:8])} still train; do not override freeze"
        training = [name or type(encoder).__name__ for name, module in encoder.named_modules() if module.training]
        assert not training, (
            f"after freeze() and train() {', '.join(training[:8])} are in training mode; do not override train"
        )
        (features,) = encoder(pixels(encoder))
        assert not features.requires_grad, (
            "a frozen encoder's features carry a gradient: encode must not use other parameters"
        )

    def test_views_do_not_influence_each_other(self) -> None:
        encoder = self._eval()
        views = pixels(encoder, 3)
        (together,) = encoder(views)
        alone = torch.cat([encoder(view)[0] for view in views.split(1)])
        assert torch.allclose(together, alone, atol=self.atol), (
            "a view's features depend on the other views of the batch: normalise and attend within each view"
        )

    def test_bfloat16_goes_through(self) -> None:
        encoder = self._eval().to(torch.bfloat16)
        taps = [*_taps(encoder)[:: max(encoder.depth, 1)], "final"]
        stacking = {"stacks": _stacks(encoder, 1).to(torch.bfloat16), "sites": [0]} if encoder.stackable else {}
        for tap, features in zip(taps, encoder(pixels(encoder), taps=taps, **stacking), strict=True):
            assert features.dtype == torch.bfloat16, (
                f"in bfloat16, tap {tap} is {features.dtype}: cast constants to the dtype of what they meet"
            )
            assert features.isfinite().all(), f"in bfloat16, tap {tap} is not finite"

    # --- building, saving, sharding

    def test_it_is_built_without_memory_on_the_meta_device(self) -> None:
        encoder = self.make()
        with torch.device("meta"):
            shadow = self.make()
        real = [name for name, tensor in _tensors(shadow) if not tensor.is_meta]
        assert not real, (
            f"under torch.device('meta') {', '.join(real[:8])} have memory: name no device in __init__, and read no "
            f"weights when dslight.components.component.on_meta()"
        )
        for name in ("width", "grid", "image_size", "prefix_tokens", "depth"):
            assert getattr(shadow, name) == getattr(encoder, name), f"{name} is another one under torch.device('meta')"

    def test_it_can_be_copied_and_pickled(self) -> None:
        encoder = self._eval()
        (expected,) = encoder(pixels(encoder))
        for name, again in (("deepcopy", copy.deepcopy), ("pickle", lambda module: pickle.loads(pickle.dumps(module)))):
            try:
                other = again(encoder)
            except Exception as error:
                raise AssertionError(
                    f"{name} fails ({error}): keep lambdas and local functions off the encoder"
                ) from error
            assert torch.equal(other(pixels(encoder))[0], expected), f"after {name} the encoder gives other features"

    def test_its_weights_file_holds_all_that_it_has_learnt(self) -> None:
        encoder, other = self._eval(), self._eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.safetensors"
            save_weights(encoder.own_state(), file)
            other.load_weights(file)
        assert torch.allclose(other(pixels(encoder))[0], encoder(pixels(encoder))[0], atol=self.atol), (
            "an encoder with the same weights file gives other features: keep everything random or learnt in "
            "parameters or persistent buffers"
        )

    def test_shard_units_cover_the_layers_once(self) -> None:
        encoder = self.make()
        units = encoder.shard_units
        inside = {id(module) for module in encoder.modules()}
        assert all(id(unit) in inside for unit in units), "shard_units names a module that is no part of the encoder"
        owner: dict[int, int] = {}
        for index, unit in enumerate(units):
            for name, parameter in unit.named_parameters():
                before = owner.setdefault(id(parameter), index)
                assert before == index, f"shard_units {before} and {index} share {name}: units must not overlap"
        for index, layer in enumerate(encoder.layers):
            missing = [name for name, parameter in layer.named_parameters() if id(parameter) not in owner]
            assert not missing, f"layers[{index}].{missing[0]} is in no shard unit: list every layer in shard_units"

    def _eval(self) -> VisionEncoder:
        encoder = self.make()
        return encoder.requires_grad_(False).eval()


def pixels(encoder: VisionEncoder, views: int = 2) -> Tensor:
    """The same random views at every call, uint8 ``[views, 3, H, W]`` at the encoder's size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (views, 3, *encoder.image_size), generator=generator, dtype=torch.uint8)


def _stacks(encoder: VisionEncoder, count: int) -> Tensor:
    """Stacks for two views, ``[count, 2, P, C]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 2, encoder.grid[0] * encoder.grid[1], encoder.width, generator=generator)


def _stream(encoder: VisionEncoder, views: Tensor, site: int, **stacking: Any) -> Tensor:
    """The residual stream that the layer ``site`` works on, prefix tokens included, stacks added: view by view, also
    where views are packed."""
    seen: list[Tensor] = []
    encode = encoder.encode

    def watched(x: Tensor, depth: int, *pieces: Any) -> Tensor | None:
        def look(module: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        hook = encoder.layers[site].register_forward_pre_hook(look, with_kwargs=True)  # behind the hook that adds
        try:
            return encode(x, depth, *pieces)
        finally:
            hook.remove()

    encoder.encode = watched  # type: ignore[method-assign]
    try:
        encoder(views, **stacking)
    finally:
        del encoder.encode
    assert len(seen) == 1, (
        f"layers[{site}] is called {len(seen)} times in a forward pass; it must be called once, as a module"
    )
    return seen[0].view(len(views), -1, encoder.width) if encoder.native else seen[0]


def _layers_run(encoder: VisionEncoder, tap: int) -> list[int]:
    """The layers that a pass up to ``tap`` goes through."""
    ran: list[int] = []

    def watch(index: int) -> Any:
        return encoder.layers[index].register_forward_pre_hook(lambda module, args: ran.append(index))

    hooks = [watch(index) for index in range(encoder.depth)]
    encoder(pixels(encoder), taps=[tap])
    for hook in hooks:
        hook.remove()
    return ran


def _tensors(encoder: VisionEncoder) -> list[tuple[str, Tensor]]:
    return [*encoder.named_parameters(), *encoder.named_buffers()]


def _taps(encoder: VisionEncoder) -> list[int]:
    """Every integer tap."""
    return list(range(encoder.resolve_tap("final") + 1)) if encoder.tappable else []


def _refused(encoder: VisionEncoder, **options: Any) -> bool:
    try:
        encoder(pixels(encoder), **options)
    except ValueError:
        return True
    return False
