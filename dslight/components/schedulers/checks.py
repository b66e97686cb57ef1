"""What :class:`~dslight.components.schedulers.deepstack.DeepStack` refuses: axes that do not go together, then parts
and views that do not fit. Every message begins with the argument to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dslight.components.schedulers.stack import problem, tap_of
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.nn.sampling import ONE_GROUP
from dslight.types import Grid

if TYPE_CHECKING:
    from dslight.components.schedulers.deepstack import DeepStack


def check_arguments(it: DeepStack) -> None:
    """Combinations that are wrong whatever the other parts are."""
    for name, stack in it.all_stacks():
        attribute, fault = problem(stack, it.sequence, inside=name.startswith("encoder"))
        if fault:
            raise ValueError(f"{it.argument(name, attribute)}: {fault}")
        if stack.view == "fine" and stack.up != it.fine:
            raise ValueError(
                f"{it.argument(name, 'sites')}: samples {stack.up} x {stack.up} fine crops, and another stack "
                f"{it.fine} x {it.fine}; every view has one number of them"
            )
    if not it.base_taps:
        raise ValueError("tap: empty; name at least one, such as `final`")
    if it.base == "zero" and not it.stacks:
        raise ValueError("base: zero leaves the language model without visual tokens; add stacks, or set base: fill")
    if it.base == "zero" and it.encoder_stacks and all(s.view != "base" for s in it.stacks):
        raise ValueError(
            "encoder_stacks: nothing reads the views that they are added to; set base: fill, or stack their view: base"
        )
    if it.base == "zero" and len({s.sampler == "corner" and s.merge for s in it.stacks}) > 1:
        raise ValueError("stacks: corner groups are smaller than the groups of the other samplers; they cannot mix")
    if it.base == "fill" and any(s.sampler == "corner" for s in it.stacks):
        raise ValueError(
            "base: fill lays whole maps into the sequence, but `corner` makes smaller groups; set base: zero"
        )
    order = (it.arguments or {}).get("order", "order")
    if it.order not in ("block", "2d", "1d"):
        raise ValueError(f"{order}: {it.order} is no order of the crops' tokens; block, 2d and 1d are")
    if it.order != "block" and (it.has_newline or it.sequence == "base"):
        raise ValueError(f"{order}: {it.order} needs crops in the sequence without newlines; set {order}: block")
    if it.order != "block" and any(stack.view == "fine" for stack in it.stacks):
        raise ValueError(f"order: {it.order} takes crops apart that fine crops are stacked onto; set order: block")
    if it.sequence == "base" and (it.has_newline or it.fill_to):
        name = "newline" if it.has_newline else "fill_to"
        raise ValueError(f"{name}: belongs to crops in the sequence; set sequence: tiles")
    if it.unpad and not it.has_newline:
        raise ValueError("unpad: leaves out parts of the mosaic, which only newline: true lays; set it too")
    if it.most < 0 or (it.most and not it.has_newline):
        raise ValueError(f"most: {it.most}; it shrinks the mosaic, which only newline: true lays, to 1 map or more")
    if it.thumbnail == "last" and it.sequence != "tiles":
        raise ValueError("thumbnail: last needs crops for the base view to stand behind; set sequence: tiles")
    if it.fill_to and it.has_newline:
        raise ValueError("fill_to: lays maps behind maps, but newline: true lays one mosaic; set one of the two")
    if it.has_newline and it.sequence != "tiles":
        raise ValueError("newline: the mosaic stands behind the base view; set sequence: tiles")
    if it.make_operation is not None and not it.stacks:
        raise ValueError("operation: acts on stacks into the language model, and there are none")


def check_parts(it: DeepStack, encoder: VisionEncoder, depth: int) -> None:
    """See :meth:`StackingScheduler.check`."""
    _check_depth(it, "stacks", it.sites, depth, "language model")
    if it.encoder_stacks and not encoder.stackable:
        raise ValueError(
            f"{it.argument('encoder_stacks')}: {type(encoder).__name__} has no layers to add stacks to; stack "
            "in the language model instead"
        )
    _check_depth(it, "encoder_stacks", it.encoder_sites, encoder.depth, "vision encoder")
    taps: list[tuple[str, Tap]] = []
    for tap in it.base_taps:
        taps.append(("tap", tap))
    for name, stack in it.all_stacks():
        taps.append((it.argument(name, "tap"), tap_of(stack)))
    for name, tap in taps:
        try:
            encoder.resolve_tap(tap)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if it.position and encoder.width % 4:
        raise ValueError(
            f"position: the 2-D sine-cosine code needs a width divisible by 4; the encoder's is {encoder.width}"
        )
    for name, stack in it.all_stacks():
        if stack.sampler == "corner" and any(side % stack.merge for side in encoder.grid):
            raise ValueError(
                f"{it.argument(name, 'merge')}: corner takes blocks of {stack.merge} x {stack.merge}; the "
                f"encoder's map of {encoder.grid[0]} x {encoder.grid[1]} tokens does not divide"
            )
    if encoder.native:
        _check_native(it, type(encoder).__name__)
    last = max(it.encoder_sites, default=0)
    for tap in it.base_taps:
        reached = encoder.resolve_tap(tap)
        if last > reached:
            raise ValueError(
                f"tap: features are read at layer {reached}, before the last stack is added at layer {last}"
            )


def _check_native(it: DeepStack, encoder: str) -> None:
    """What has no meaning for views that have a size for each image, or is not there for them yet."""
    asked = {
        "position: 0": bool(it.position),
        "unpad: false": it.unpad,
        "fill_to: 0": bool(it.fill_to),
        "most: 0": bool(it.most),
        "thumbnail: first": it.thumbnail == "last",
        f"{it.argument('order', 'order')}: block": it.order != "block",
        it.argument("stacks", "count"): bool(it.fine),
    }
    for without in [without for without, wanted in asked.items() if wanted]:
        name, _, value = without.partition(": ")
        instead = f"write {without}" if value else "leave it out"
        raise ValueError(f"{name}: is of views of one size, and {encoder} takes each image at its own; {instead}")


def check_views(it: DeepStack, grids: Sequence[Grid], fine: int, padded: bool) -> None:
    """See :meth:`StackingScheduler.check_views`."""
    if it.unpad and not padded:
        raise ValueError(
            "unpad: would leave out parts of images that are squashed, not padded; set unpad: false, or the views' "
            "fit: pad"
        )
    if it.uses_crops and all(grid == (0, 0) for grid in grids):
        name = type(it).__name__
        raise ValueError(f"{name} looks at high-resolution crops, but the views have none: choose views with a grid")
    if it.fine and fine != it.fine:
        raise ValueError(
            f"{it.argument('stacks', 'count')}: needs {it.fine} x {it.fine} fine crops of every view, but "
            + (f"the views have {fine} x {fine}; set their `up`" if fine else "the views have none; choose HDViews")
        )
    most = max((rows * cols for rows, cols in grids), default=0)
    for name, stack in it.all_stacks():
        if stack.view != "crops":
            continue
        if stack.sampler == "patch_merge" and any(grid != (stack.merge, stack.merge) for grid in grids):
            raise ValueError(
                f"{it.argument(name, 'sampler')}: patch_merge needs {stack.merge} x {stack.merge} crops of "
                "every image, but the views may cut others; choose GridViews"
            )
        if stack.sampler not in ONE_GROUP and most > len(stack.sites):
            raise ValueError(
                f"{it.argument(name, 'count')}: {_counted(len(stack.sites), 'stack')} cannot take the {most} "
                "crops that the views may cut"
            )
    if it.fill_to and most > it.fill_to:
        raise ValueError(f"fill_to: {it.fill_to} maps cannot take the {most} crops that the views may cut")


def _check_depth(it: DeepStack, stacks: str, sites: Sequence[int], depth: int, part: str) -> None:
    if sites and max(sites) >= depth:
        layers = ", ".join(map(str, sites))
        raise ValueError(
            f"{it.argument(stacks)}: {_counted(len(sites), 'stack')} at layer{'s' * (len(sites) > 1)} "
            f"{layers} need {_counted(max(sites) + 1, 'layer')}; the {part} has {depth}"
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
