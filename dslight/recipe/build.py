"""From a composed recipe to an experiment: the only place that sees both model and data.

A recipe is first built on the ``meta`` device, where modules have shapes but no memory: whether the parts fit each
other, the stage and the views is known in seconds, even for 13B parameters, and before a weight or a sample is read.
Only then is it built for real.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.modules.module import register_module_module_registration_hook

from dslight.checkpoints import load_checkpoint, parts_in
from dslight.checkpoints.elsewhere import KEY, put_back
from dslight.checkpoints.read import files_of, unpickled
from dslight.components import (
    Component,
    HFCausalLM,
    HFVisionEncoder,
    NaFlexEncoder,
    NativeVisionEncoder,
    TimmEncoder,
)
from dslight.components.kept_features import refuse as refuse_features
from dslight.components.stacking import EncoderPass
from dslight.data.conversation import default_template
from dslight.data.datamodule import ShardData, micro_size, no_thoughts
from dslight.data.dense import DenseLabelData
from dslight.data.images import views_for
from dslight.data.plan import accumulation
from dslight.data.shards import ShardError
from dslight.data.template_habits import Habits, check_habits
from dslight.diagnostics.settings import Diagnostics
from dslight.errors import WeightsError
from dslight.layout import SlotLayout
from dslight.limits import at_most, limit
from dslight.metrics.benchmarks import BENCHMARKS, row_of
from dslight.metrics.benchmarks import of as benchmark_of
from dslight.recipe.errors import RecipeError
from dslight.recipe.explain import closest
from dslight.recipe.forms import as_written
from dslight.recipe.schema import Section, in_recipe, located, sections
from dslight.recipe.training import check_training
from dslight.recipe.waiting import KINDS, parts_that_wait, read
from dslight.train.strategy import copies_of
from dslight.types import Grid
from dslight.upstream.transformers import attention_of
from dslight.vlm import VLM

_FILE_NAME = re.compile(r"\w[\w.-]*")
_FROM_FILES = (HFCausalLM, HFVisionEncoder, NativeVisionEncoder, NaFlexEncoder, TimmEncoder)
"""Parts that read all of their weights from where ``pretrained`` says."""


@dataclass
class Experiment:
    """A recipe with everything it names.

    Attributes:
        recipe: as composed.
        model: what the Trainer drives: a VLM, or a component that is fitted alone.
        data: its data module.
        trainer: the section that makes the Trainer.
        diagnostics: what is measured behind validations, if anything is.
        image: (height, width) of the image that costs are of, where its size matters; default: the largest.
        files: part -> the file that all of its weights were read from; ``None``: the one that the part itself names.
            Of others it is not known that they are in one.
    """

    recipe: Mapping[str, Any]
    model: VLM | Component
    data: Any
    trainer: Section
    diagnostics: Diagnostics | None = None
    image: tuple[int, int] | None = None
    files: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.model, VLM) and isinstance(self.data, ShardData):
            self.data.views = self.data.views or views_for(self.model.needs)

    @property
    def of_shards(self) -> bool:
        """Whether the data are this library's, which know their views, batches and sources; a stranger's may be any
        data module of Lightning.
        """
        return isinstance(self.data, ShardData | DenseLabelData)

    @property
    def validates(self) -> bool:
        """Whether there is something to validate on."""
        return bool(self.data.val_sources) if self.of_shards else is_overridden("val_dataloader", self.data)

    @property
    def encoder(self) -> Any:
        """The vision encoder, wherever it is."""
        return self.model.vision_encoder if isinstance(self.model, VLM) else self.model

    @property
    def grids(self) -> list[Grid]:
        """Every crop grid that the data may produce."""
        return list(self.data.views.grids())

    @property
    def fine(self) -> int:
        """n of the n x n fine crops of every view that the data makes; 0: none."""
        return int(getattr(self.data.views, "fine", 0))

    @property
    def largest_grid(self) -> Grid:
        """The grid of most crops; of several, the squarest."""
        return max(self.grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])))

    @property
    def pieces(self) -> Grid:
        """(rows, columns) of the pieces of the base view of ``image``: one, unless images have sizes of their own."""
        views: Any = getattr(self.data, "views", None)
        if not getattr(views, "native", False):
            return (1, 1)
        return views.pieces(self.image or views.largest, self.encoder.image_size)

    def views_of(self, run: EncoderPass) -> list[Grid]:
        """Of each view that passes the encoder in one of its runs over that image, its (rows, columns) of pieces."""
        (rows, cols), (up, _) = self.pieces, self.largest_grid
        if not self.encoder.native:
            return [(1, 1)] * run.views
        base, enlarged = [(rows, cols)], [(rows * up, cols * up)]
        return {1: base, up * up: enlarged if up > 1 else base}.get(run.views, base + enlarged)

    @property
    def slots(self) -> SlotLayout | None:
        """How many positions of the sequence an image takes; ``None`` for a component alone."""
        if not isinstance(self.model, VLM):
            return None
        return self.model.stacking.slot_layout(self.model.vision_encoder, self.model.projector)

    @property
    def context(self) -> tuple[int, ...]:
        """What stands at the visual positions of the sequence (see :meth:`SlotLayout.order`), for an image that is cut
        into the largest grid; empty for a component alone.
        """
        grid, (height, width) = self.largest_grid, self.encoder.image_size
        size = (grid[0] * height, grid[1] * width)
        return self.slots.order(grid, size, self.pieces) if self.slots else ()


def check(recipe: Mapping[str, Any], trains: bool = True, checked: Mapping[str, Section] | None = None) -> Experiment:
    """The experiment on the meta device: all shapes, no memory, no weights, no data.

    Args:
        recipe: as composed.
        trains: whether it is to be trained as it is, and not to be filled with what was trained.
        checked: the recipe's :func:`~dslight.recipe.schema.sections`, where they are there already.

    Raises:
        RecipeError: naming the key's path, the value and the limit.
    """
    made = sections(recipe) if checked is None else checked
    with as_written(recipe):
        with torch.device("meta"), _counting_modules():
            experiment = _assemble(recipe, made)
        count = sum(parameter.numel() for parameter in experiment.model.parameters())
        at_most("parameters", count, f"model: {count:,} parameters", RecipeError)
        for rows, cols in experiment.grids:
            views = (1 + rows * cols) * (1 + experiment.fine**2) - 1
            at_most("crops", views, f"data.views: {rows} x {cols} crops, {views:,} with all of theirs", RecipeError)
        check_experiment(experiment, trains)
    return experiment


def check_experiment(experiment: Experiment, trains: bool = True) -> None:
    """What the parts, the stage, the data and the strategy are to each other.

    Raises:
        RecipeError: naming the key's path, the value and the limit.
    """
    recipe, model = experiment.recipe, experiment.model
    if isinstance(model, VLM) and experiment.of_shards:
        try:
            model.check_views(experiment.data.views)
        except ValueError as error:
            raise RecipeError(in_recipe(f"model.{error}", recipe)) from None
        _check_packing(model, experiment.data)
    if isinstance(model, VLM) and trains:
        _check_newline(model, recipe)
    for name in recipe.get("weights") or {}:
        parts = model.parts()
        if name not in parts and not (name == "model" and isinstance(model, VLM)):
            raise RecipeError(
                f"weights.{name}: there is no such part{closest(name, parts)}; the parts are {', '.join(parts)}"
            )
    if experiment.of_shards:
        _check_data(experiment.data)
    check_training(recipe, model)
    _check_features(model, experiment.data)
    _check_diagnostics(experiment)
    _check_mesh(recipe)


def build(
    recipe: Mapping[str, Any],
    opens: Literal["fit", "validate"] | None = "fit",
    restored: bool = False,
    checked: Mapping[str, Section] | None = None,
) -> Experiment:
    """The experiment for real: checked, seeded, with its weights, connected to its data.

    Where the strategy shards, an encoder or decoder whose weights all come from a file is made without memory, and read
    share by share once it is sharded (:mod:`dslight.components.unread`).

    Args:
        recipe: as composed.
        opens: what the shards are wanted for: those that it needs have to be there.
        restored: all weights will come from a sharded run's checkpoint.
        checked: the recipe's :func:`~dslight.recipe.schema.sections`, where they are there already.

    Raises:
        RecipeError: as :func:`check`, and for files that are not there. All are looked for before a weight is read.
    """
    made = sections(recipe) if checked is None else checked
    shapes, tokenizer = _ready(recipe, opens, made)
    given = {part: path for path, parts in _weights(recipe, shapes.model).values() for part in parts}
    waiting = parts_that_wait(recipe, made["trainer"], shapes.model, given, restored)
    experiment = _seeded(recipe, made, waiting)
    if odd := [name for name in waiting if any(b.is_meta for b in experiment.model.parts()[name].buffers())]:
        waiting = {name: path for name, path in waiting.items() if name not in odd}  # buffers made of parameters
        experiment = _seeded(recipe, made, waiting)
    model = experiment.model
    for name, (path, parts) in _weights(recipe, model).items():
        try:
            report = load_checkpoint(model, path, parts, read=False)
            if now := [part for part in parts if part not in waiting]:
                load_checkpoint(model, path, now)
        except WeightsError as error:
            raise RecipeError(f"weights.{name}: {error}") from error
        rank_zero_info(f"weights.{name}: {report}")
    _check_elsewhere(recipe, model, waiting)
    if isinstance(model, VLM) and waiting:
        model.read_weights = partial(read, model, waiting)
    connect(experiment, tokenizer)
    experiment.files = _files(recipe, model, given)
    return experiment


def _check_elsewhere(recipe: Mapping[str, Any], model: VLM | Component, waiting: Mapping[str, Any]) -> None:
    """Whether what ``weights.model`` leaves to other files is what it was there; what ``weights`` names is not asked.

    Raises:
        RecipeError: naming the part.
    """
    path, named = (recipe.get("weights") or {}).get("model"), recipe.get("weights") or {}
    if path is None or Path(path).suffix != ".ckpt":
        return
    try:
        said = unpickled(Path(path)).get(KEY) or {}
        asked = {part: one for part, one in said.items() if part not in named and part not in waiting}
        put_back({}, asked, model.state_dict(), path)
    except WeightsError as error:
        raise RecipeError(f"weights.model: {error}") from error


def _files(recipe: Mapping[str, Any], model: VLM | Component, given: Mapping[str, str]) -> dict[str, str | None]:
    """See :class:`Experiment`. ``given``: part -> path, what ``weights`` says."""
    found: dict[str, str | None] = {part: str(Path(path).resolve()) for part, path in given.items()}
    for name, part in model.parts().items() if isinstance(model, VLM) else ():
        arguments = recipe["model"][name].get("init_args") or {}
        whole = isinstance(part, _FROM_FILES) and not arguments.get("extra_layers")
        if name not in given and whole and arguments.get("pretrained"):
            found[name] = None
    return found


def _seeded(recipe: Mapping[str, Any], made: Mapping[str, Section], waiting: Iterable[str]) -> Experiment:
    seed_everything(recipe.get("seed", 0), verbose=False)
    return _assemble(recipe, made, [KINDS[name] for name in waiting])


def ready(recipe: Mapping[str, Any], opens: Literal["fit", "validate"] | None = "fit") -> Any:
    """Check a recipe and look for every file that it needs; returns the tokenizer (``None`` for a component alone).

    Raises:
        RecipeError: as :func:`check`, and for files that are not there: the shards first.
    """
    return _ready(recipe, opens, sections(recipe))[1]


def _ready(
    recipe: Mapping[str, Any], opens: Literal["fit", "validate"] | None, made: Mapping[str, Section]
) -> tuple[Experiment, Any]:
    checked = check(recipe, opens == "fit", made)
    if opens is not None:
        try:
            checked.data.setup(opens)
        except (ValueError, OSError, ShardError) as error:
            raise RecipeError(str(error)) from error
    tokenizer = _tokenizer(checked.model)
    for name, path in (recipe.get("weights") or {}).items():
        try:
            if path is not None:
                files_of(path)
        except WeightsError as error:
            raise RecipeError(f"weights.{name}: {error}") from error
    _weights(recipe, checked.model)
    if opens != "validate":
        chat_habits(checked, tokenizer)
    return checked, tokenizer


def chat_habits(experiment: Experiment, tokenizer: Any) -> Habits | None:
    """What the tokenizer's own chat template does, where the data are written with it.

    Raises:
        RecipeError: no answer can be learnt with it.
    """
    data = experiment.data
    if tokenizer is None or not isinstance(data, ShardData) or not data.sources:
        return None
    if (data.template_name or default_template(tokenizer)) != "tokenizer":
        return None
    try:
        return check_habits(tokenizer, data.thinking)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _weights(recipe: Mapping[str, Any], model: VLM | Component) -> dict[str, tuple[str, list[str]]]:
    """What is read from where: key below ``weights`` -> (path, parts).

    ``weights.model`` gives every part that has no weights of its own; a part that it has no tensors of (released
    checkpoints come without their vision encoder) begins as its ``pretrained`` says.

    Raises:
        RecipeError: for a part that has neither.
    """
    named = dict(recipe.get("weights") or {})
    found = {name: (path, [name]) for name, path in named.items() if name != "model" and path is not None}
    if named.get("model") is None:
        return found
    try:
        held = parts_in(named["model"])
    except WeightsError as error:
        raise RecipeError(f"weights.model: {error}") from error
    asked = []
    for name, part in model.parts().items():
        if name in named or not any(True for _ in part.parameters()):
            continue
        arguments = recipe["model"][name].get("init_args") or {}
        if name in held:
            asked.append(name)
        elif not arguments.get("pretrained"):
            raise RecipeError(
                f"weights.model: {named['model']} has no tensor of the {name}; name a file for it (weights.{name}), "
                f"give it a `pretrained`, or let it begin as it is initialised: weights.{name}=null"
            )
    return {"model": (named["model"], asked), **found}


def world_size(recipe: Mapping[str, Any]) -> int:
    """The number of processes that the recipe's trainer names; 1 where it leaves that to the machine."""
    trainer = recipe.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    return devices * nodes if isinstance(devices, int) and isinstance(nodes, int) and devices > 0 else 1


def _check_mesh(recipe: Mapping[str, Any]) -> None:
    trainer = recipe.get("trainer") or {}
    strategy = trainer.get("strategy")
    sizes = (strategy.get("init_args") or {}) if isinstance(strategy, Mapping) else {}
    if "devices" in trainer and "replicate" in sizes:
        try:
            copies_of(sizes["replicate"], world_size(recipe), trainer.get("num_nodes", 1))
        except ValueError as error:
            raise RecipeError(f"trainer.strategy.init_args.{error}") from None
    data, tensor = sizes.get("data_parallel_size"), sizes.get("tensor_parallel_size")
    if "devices" not in trainer or not isinstance(data, int) or not isinstance(tensor, int):
        return
    if data * tensor != world_size(recipe):
        raise RecipeError(
            f"trainer.strategy.init_args.data_parallel_size: {data} x tensor_parallel_size {tensor} is not the "
            f"number of processes, {world_size(recipe)} (trainer.devices x trainer.num_nodes)"
        )


def _assemble(recipe: Mapping[str, Any], made: Mapping[str, Section], wait: Sequence[type] = ()) -> Experiment:
    if "model" in made:
        model = made["model"].build(wait)
    else:
        model = made["component"].build()
        model.objective = made["objective"].build()(model.width)
    if "stage" in made:
        apply_stage(model, made["stage"].build())
    looks = made["diagnostics"].build() if "diagnostics" in made else None
    return Experiment(recipe, model, made["data"].build(), made["trainer"], looks)


def apply_stage(model: VLM | Component, stage: Any) -> None:
    """Let a stage say what trains.

    Raises:
        RecipeError: for what it cannot say of these parts.
    """
    try:
        model.train_with(stage)
    except ValueError as error:
        raise RecipeError(f"stage.{error}") from None


@contextmanager
def _counting_modules() -> Iterator[None]:
    """Give up building what turns out to have no end."""
    most, count = limit("modules"), 0

    def counted(module: Any, name: str, submodule: Any) -> None:
        nonlocal count
        count += 1
        if count > most:  # this alone is asked every time
            at_most("modules", count, f"{type(module).__name__}: {count:,} modules and more")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _check_newline(model: VLM, recipe: Mapping[str, Any]) -> None:
    weights, stage = recipe.get("weights") or {}, recipe.get("stage")
    loaded = weights.get("model") or weights.get("stacking")
    if model.stacking.newline is None or not stage or loaded or "stacking" in (stage.get("train") or {}):
        return
    raise RecipeError(
        "model.stacking.init_args.newline: the newline token starts at zero and would stay there; give "
        "stage.train.stacking a learning rate, or load one (weights.model, weights.stacking)"
    )


def _check_diagnostics(experiment: Experiment) -> None:
    looks, model = experiment.diagnostics, experiment.model
    if looks is None or not isinstance(model, VLM):
        return
    if not experiment.data.val_sources:
        raise RecipeError("diagnostics: ask questions, and data.val names none")
    config = getattr(getattr(model.language_model, "model", None), "config", None)
    attention = "eager" if config is None else attention_of(config)
    if looks.heat_maps and looks.heat == "attention" and attention != "eager":
        raise RecipeError(
            f"diagnostics.heat: attention, but {attention} gives no weights; set "
            f"model.language_model.init_args.attention: eager, or choose gradient_x_input"
        )


def _check_packing(model: VLM, data: Any) -> None:
    if not data.order.pack:
        return
    if model.stacking.blocks:
        raise RecipeError(
            f"data.order.pack: {type(model.stacking).__name__} attends to the images of a whole row, so a document "
            f"would see those of the others in it; do not pack, or choose a stacking that adds"
        )
    try:
        model.language_model.check_packing()
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _check_features(model: VLM | Component, data: Any) -> None:
    if isinstance(model, VLM) and getattr(data, "keep_features", None) is not None:
        try:
            refuse_features(model.vision_encoder, model.stacking, model.stage is not None)
        except ValueError as error:
            raise RecipeError(str(error)) from None


def _check_data(data: Any) -> None:
    for key in ("global_batch_size", "micro_batch_size", "val_batch_size"):
        size = getattr(data, key)
        if size is not None and size < 1:
            raise RecipeError(f"data.{key}: must be at least 1, got {size}")
    batches_per_step(data, world_size=1)
    for name, source in data.val_sources.items():
        if not _FILE_NAME.fullmatch(name):
            raise RecipeError(f"data.val.{name}: names a file of the run's folder; use letters, digits, _, - and .")
        if source.loss:
            _check_loss(name, source)
            continue
        if (named := benchmark_of(name, source.benchmark)) not in BENCHMARKS:
            raise RecipeError(
                f"data.val.{name}.benchmark: there is no {named!r}{closest(named, BENCHMARKS)}; "
                f"there are {', '.join(sorted(BENCHMARKS))}"
            )
        if source.frames is not None and source.frames < 1:
            raise RecipeError(f"data.val.{name}.frames: must be at least 1, got {source.frames}")
        if source.thinking is not None and data.template_name not in (None, "tokenizer"):
            raise RecipeError(no_thoughts(name, data.template_name))
        try:
            row_of(name, source)
        except (ValueError, TypeError) as error:
            raise RecipeError(located(f"data.val.{name}", error)) from None


def _check_loss(name: str, source: Any) -> None:
    for key in ("benchmark", "protocol", "suffix", "max_new_tokens", "metric", "frames", "thinking"):
        if getattr(source, key) is not None:
            raise RecipeError(f"data.val.{name}.{key}: has no effect beside loss, for which nothing is asked")


def batches_per_step(data: Any, world_size: int) -> int:
    """Micro-batches of a rank per optimizer step, when ``world_size`` ranks share the global batch.

    Raises:
        RecipeError: when the batch sizes do not divide.
    """
    micro = micro_size(data.global_batch_size, data.micro_batch_size, world_size)
    try:
        return accumulation(data.global_batch_size, world_size, micro)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _tokenizer(model: VLM | Component) -> Any:
    if not isinstance(model, VLM):
        return None
    try:
        return model.language_model.load_tokenizer()
    except (ValueError, OSError) as error:
        raise RecipeError(located("model.language_model.init_args", error)) from error


def connect(experiment: Experiment, tokenizer: Any = None) -> None:
    """Tell the data what only the model knows, and the model what only the data knows."""
    model, data = experiment.model, experiment.data
    if isinstance(model, VLM) and experiment.of_shards:
        model.tokenizer = tokenizer or model.tokenizer
        model.connect(data)
    elif experiment.of_shards:
        data.connect(image_size=experiment.encoder.image_size, patches=experiment.encoder.grid)
