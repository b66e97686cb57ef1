"""A vision encoder that does not train is run once for each view: what stands in its place, and what it is known by.

The stacking is left as it is: it asks :class:`KeptEncoder` for the features of views, by their numbers, as it asks an
encoder. What the batch brings along is read; the rest is computed in one pass and kept. Features are those of the very
encoder: of its weights and settings, in the precision and on the kind of device that they are computed with.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dslight.components.component import whole
from dslight.components.stacking import StackingScheduler
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.errors import UserError
from dslight.features.store import FeatureStore
from dslight.features.views import KnownViews
from dslight.places import moved
from dslight.types import Grid, Views
from dslight.upstream.torch import bytes_of, is_compiled, versions_of
from dslight.written import written


class Keeper:
    """Keeps the features of an encoder that does not train.

    Args:
        encoder: the encoder.
        stacking: asks it.
        store: the folder.
        trained: whether a training may change the encoder; else whatever has gradients is no matter.

    Raises:
        UserError: where features would not stay the same, or are not the encoder's own.
    """

    def __init__(
        self, encoder: VisionEncoder, stacking: StackingScheduler, store: FeatureStore, trained: bool = True
    ) -> None:
        refuse(encoder, stacking, trained)
        self.encoder, self.stacking, self.store = encoder, stacking, store
        self._found: tuple[Any, str, dict[Tap, str]] | None = None

    def sets(self, trainer: Any) -> tuple[str, dict[Tap, str]]:
        """The encoder's digest, and its sets by tap.

        Args:
            trainer: Lightning's, which says in what precision the encoder is run.
        """
        how = f"{trainer.precision} {getattr(trainer.strategy, 'policy', None)}"
        now: list[Any] = [how]
        if not _sharded(self.encoder):  # there, parameters are others in a forward pass, and gathering them is slow
            now += versions_of(_tensors(self.encoder))
        found = self._found
        if found is None or found[0] != now:
            name = encoder_digest(self.encoder, how)
            sets: dict[Tap, str] = {
                tap: f"{name}-{tap if tap == 'final' else self.encoder.resolve_tap(tap)}"
                for tap in self.stacking.taps()
            }
            for tap, one in sets.items():
                self.store.open(one, {"encoder": type(self.encoder).__qualname__, "tap": tap, "precision": how})
            self._found = found = (now, name, sets)
        return found[1], found[2]

    def asked(self, grids: Iterable[Grid], fine: int) -> dict[Grid, list[tuple[int, Tap]]]:
        """What the stacking asks of the views of an image, by the grid of its crops: (number of the view, tap)."""
        found = {}
        for grid in grids:
            count = (1 + grid[0] * grid[1]) * (1 + fine**2)
            listens = _Listening(self.encoder)
            numbers = torch.arange(count).view(-1, 1, 1, 1)
            size = tuple(side * max(n, 1) for side, n in zip(self.encoder.image_size, grid, strict=True))
            with torch.no_grad():
                self.stacking(listens, Views(numbers, [grid], fine, [size]))  # type: ignore[arg-type]
            found[grid] = list(dict.fromkeys(listens.asked))
        return found

    def of(self, views: KnownViews, trainer: Any) -> KeptEncoder:
        """What stands in the encoder's place for the views of a batch."""
        name, sets = self.sets(trainer)
        if views.encoder and views.encoder != name:
            raise UserError(
                "data.keep_features: the vision encoder's weights were changed while features of it were read; it does "
                "not train, so nothing else may write into it either"
            )
        return KeptEncoder(self, views, sets)

    def blank(self, views: Views) -> KnownViews:
        """Views that nobody looks at, whose features are zeros."""
        count = len(views.pixels)
        return KnownViews(views.pixels[:0], views.grids, views.fine, views.sizes, keys=[""] * count)


class KeptEncoder:
    """Stands in the encoder's place; whatever else is asked of it, the encoder answers."""

    def __init__(self, keeper: Keeper, views: KnownViews, sets: dict[Tap, str]) -> None:
        self._keeper, self._views, self._sets = keeper, views, sets
        self._encoder = keeper.encoder
        self._row = {number: row for row, number in enumerate(views.rows)}
        self._known = {tap: {number: i for i, number in enumerate(known)} for tap, known in views.known.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(
        self,
        numbers: Tensor,
        taps: Sequence[Tap] = ("final",),
        stacks: Tensor | None = None,
        sites: Sequence[int] = (),
    ) -> list[Tensor]:
        """Features of views ``[n, P, C]`` at each tap, as the encoder gives them.

        Args:
            numbers: int64 ``[n, 1, 1, 1]`` on the CPU, which views.
            taps: where to read.
            stacks: none are taken.
            sites: as ``stacks``.
        """
        if stacks is not None:
            raise UserError(_STACKED)
        wanted: list[int] = numbers.flatten().tolist()
        lacking = {n for n in wanted if any(n not in self._known.get(tap, {}) for tap in taps)}
        missing = sorted(lacking & self._row.keys())
        fresh = self._run(missing, taps) if self._agreed(bool(missing)) else None
        places = {number: i for i, number in enumerate(missing)}
        found = []
        for i, tap in enumerate(taps):
            known = self._known.get(tap, {})
            parts = [*([self._views.features[tap]] if known else []), *([fresh[i]] if fresh and missing else [])]
            if not parts:  # a blank view, or none at all
                found.append(self._zeros(len(wanted), fresh[i].dtype if fresh else None))
                continue
            pool = parts[0] if len(parts) == 1 else torch.cat(parts)
            index = [len(known) + places[n] if n in places else known[n] for n in wanted]
            if index != list(range(len(pool))):
                pool = pool.index_select(0, moved(torch.tensor(index, dtype=torch.int64), pool.device))
            found.append(pool)
        return found

    def _agreed(self, run: bool) -> bool:
        """Whether the encoder runs: where it is sharded, on all ranks or on none."""
        if not _sharded(self._encoder):
            return run
        device = next(self._encoder.parameters()).device
        flag = torch.tensor(int(run), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _run(self, missing: list[int], taps: Sequence[Tap]) -> list[Tensor]:
        pixels = self._views.pixels
        if missing != self._views.rows:
            rows = torch.tensor([self._row[number] for number in missing], dtype=torch.int64)
            pixels = pixels.index_select(0, moved(rows, pixels.device))
        if not missing:
            pixels = pixels.new_zeros(0, 3, *self._encoder.image_size)
        with torch.no_grad():
            features = self._encoder(pixels, taps=taps)
        for tap, feature in zip(taps, features, strict=True):
            self._keep(missing, tap, feature)
        return features

    def _keep(self, missing: list[int], tap: Tap, feature: Tensor) -> None:
        store = self._keeper.store
        if store.full or not missing:
            return
        rows = feature.detach().cpu()
        for number, one in zip(missing, rows, strict=True):
            if self._views.keys[number]:
                store.keep_feature(self._sets[tap], self._views.keys[number], one)

    def _zeros(self, count: int, dtype: torch.dtype | None) -> Tensor:
        encoder = self._encoder
        like = next(encoder.parameters())
        return torch.zeros(
            count, encoder.grid[0] * encoder.grid[1], encoder.width, device=like.device, dtype=dtype or like.dtype
        )


class _Listening:
    """Notes what it is asked, and answers with zeros."""

    def __init__(self, encoder: VisionEncoder) -> None:
        self._encoder, self.asked = encoder, list[tuple[int, Tap]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(
        self,
        numbers: Tensor,
        taps: Sequence[Tap] = ("final",),
        stacks: Tensor | None = None,
        sites: Sequence[int] = (),
    ) -> list[Tensor]:
        if stacks is not None:
            raise UserError(_STACKED)
        self.asked += [(number, tap) for number in numbers.flatten().tolist() for tap in taps]
        area = self._encoder.grid[0] * self._encoder.grid[1]
        return [torch.zeros(len(numbers), area, self._encoder.width) for _ in taps]


_STACKED = (
    "data.keep_features: this stacking adds stacks inside the vision encoder, whose layers behind them see something "
    "else for every stacking; leave keep_features out, or stack in the language model"
)


def refuse(encoder: VisionEncoder, stacking: StackingScheduler, trained: bool = True) -> None:
    """Say why features of this encoder cannot be kept; it may be on the meta device.

    Raises:
        UserError: beginning with the key.
    """
    if encoder.native:
        raise ValueError(
            f"data.keep_features: {type(encoder).__name__} sees every image at its own size, and kept features are of "
            f"views of one size; leave keep_features out"
        )
    trains = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    if trains and trained:
        raise UserError(
            f"data.keep_features: the vision encoder trains (stage.train.vision_encoder; {trains[0]} and others), so "
            f"its features change with every step; leave keep_features out, or freeze it"
        )
    if getattr(stacking, "encoder_stacks", None):
        raise UserError(_STACKED)


def encoder_digest(encoder: nn.Module, how: str) -> str:
    """A digest of all that decides an encoder's features: weights, settings, versions, precision and kind of device.

    Of a sharded encoder every rank computes it, of whole tensors; it is that of the unsharded one.
    """
    made = hashlib.blake2b(digest_size=16)
    kinds = {type(module) for module in encoder.modules()}
    plain = {next(k for k in kind.__mro__ if not issubclass(k, FSDPModule)) for kind in kinds}
    sources = sorted(filter(None, map(_source, plain)))
    device = next(iter(_tensors(encoder)), torch.zeros(0)).device.type
    said = [written(encoder), sources, how, device, is_compiled(encoder), torch.get_float32_matmul_precision()]
    made.update(json.dumps([*said, *map(_version, ("torch", "transformers", "timm", "dslight"))]).encode())
    for name, tensor in encoder.state_dict().items():
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(bytes_of(whole(tensor)))
    return made.hexdigest()


def _sharded(module: nn.Module) -> bool:
    return any(isinstance(one, FSDPModule) for one in module.modules())


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _source(kind: type) -> str | None:
    """The source of a stranger's class, which a version does not tell."""
    if kind.__module__.partition(".")[0] in ("torch", "transformers", "timm", "dslight", "lightning"):
        return None
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
