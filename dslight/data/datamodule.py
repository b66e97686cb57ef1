"""The data of a run as a Lightning data module: sources and views from the recipe, tokenizer and sizes from the model.

This file only connects: what is read when is the plan's (``plan``), how rows look is ``conversation``'s, ``images``'
and ``collate``'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from torchmetrics import Metric
from transformers import PreTrainedTokenizerBase

from dslight.data.asking import Asking
from dslight.data.caches.features import FeatureReader, KeepFeatures, settings_of
from dslight.data.caches.lengths import Measure, Through, lengths_of, question_lengths
from dslight.data.caches.tokens import Tokens, tokens_of
from dslight.data.collate import Collate, Item, OnUnusable
from dslight.data.conversation import Template, TemplateName, called, default_template
from dslight.data.conversation import template as template_named
from dslight.data.images import views_for
from dslight.data.loader import EvalLoader, TrainLoader, differing
from dslight.data.plan import Order, PlanSource, TrainPlan, accumulation
from dslight.data.records import ConversationRecords, OnBad, QuestionRecords, TrainRecords
from dslight.data.rows import RowMaker
from dslight.data.sample import Alpha, Exif, Pixels
from dslight.data.shards import Cache, Check, ShardError, ShardReader, is_remote
from dslight.data.templates.habits import check_habits
from dslight.data.templates.tile_marks import TileMarks
from dslight.data.templates.vocabulary import check_vocabulary
from dslight.data.transport.workers import Start, Workers
from dslight.data.views.frames import AS_USUAL, Frames
from dslight.data.views.policy import ViewPolicy
from dslight.features.store import FeatureStore
from dslight.layout import SlotLayout
from dslight.processor import Processor
from dslight.types import Grid, ViewNeeds
from dslight.upstream.lightning import FitProgress
from dslight.written import Written


class Keeper(Protocol):
    """The model's side of kept features (:class:`dslight.components.kept_features.Keeper`)."""

    store: FeatureStore

    def sets(self, trainer: Any) -> tuple[str, dict[Any, str]]:
        """The encoder's digest, and its sets by tap."""
        ...

    def asked(self, grids: Iterable[Grid], fine: int) -> dict[Grid, list[tuple[int, Any]]]:
        """What is asked of the views of an image, by the grid of its crops."""
        ...


@dataclass
class Source:
    """A folder of training shards, or its URL; an epoch shows each record ``weight`` times (0.5: a fresh random
    half).

    Example:
        >>> dslight.Data(train=[dslight.Source("data/mine", weight=0.5)]).sources
        [Source(root='data/mine', weight=0.5)]
    """

    root: str
    weight: float = 1.0


@dataclass
class ValSource:
    """A folder of evaluation shards, or its URL, and how its questions are asked and judged.

    Args:
        root: the folder, or its URL.
        limit: keeps the first questions, or conversations.
        loss: it holds conversations, whose next-token loss is logged as ``val/NAME/loss``; nothing is generated.
        benchmark: brings prompt, limit and metric; by default the benchmark whose name the source has, else ``vqa``.
        protocol: of the benchmark's metric, in place of its own: ``lmms_eval`` for POPE, for instance.
        suffix: what stands behind each question, in place of the benchmark's.
        max_new_tokens: the longest answer, in place of the benchmark's.
        metric: in place of the benchmark's: a ``dslight.metrics.TextMetric``, or a subclass of your own.
        frames: of a video that is stored frame by frame (``--tile none``), as many, in the middle of equal parts of it.
        thinking: whether the model is asked to think first, by the tokenizer's own template (``enable_thinking``);
            default: as ``data.thinking`` says. Thoughts are not scored, and have 2,048 tokens beside the answer's where
            ``max_new_tokens`` says nothing.

    Example:
        >>> pages = dslight.ValSource("data/eval/textvqa", limit=100, benchmark="textvqa", max_new_tokens=8)
        >>> dslight.Data(val={"pages": pages}).val_sources["pages"].limit
        100
    """

    root: str
    limit: int | None = None
    loss: bool = False
    benchmark: str | None = None
    protocol: str | None = None
    suffix: str | None = None
    max_new_tokens: int | None = None
    metric: Metric | None = None
    frames: int | None = None
    thinking: bool | None = None


Kind = TypeVar("Kind")
Kept = TypeVar("Kept")


def source_of(kind: type[Kind], source: Any, key: str) -> Kind:
    """A source in any of its forms: made already, its folder alone, or a mapping of its arguments as in a recipe.

    Raises:
        ValueError: beginning with ``key``.
    """
    if isinstance(source, kind):
        return source
    if isinstance(source, str | Path):
        source = {"root": str(source)}
    if not isinstance(source, Mapping):
        raise ValueError(f"{key}: expected a folder or a mapping of arguments, got {source!r}")
    known = [field.name for field in fields(cast(Any, kind))]
    for name in source:
        if name not in known:
            raise ValueError(f"{key}.{name}: is no argument of a source; they are {', '.join(known)}")
    if "root" not in source:
        raise ValueError(f"{key}.root: missing; the folder of the shards, or its URL")
    return kind(**source)


class ShardData(LightningDataModule, Written):
    """Conversations to train on and questions to validate with, from shards.

    Args:
        train: training sources; a plain path is a source of weight 1.
        val: evaluation sources by name, or their folders; their loaders come in this order.
        views: how an image becomes views; default: those that the stacking looks at.
        pixels: ``pillow`` gives the pixels of the authors' code bit for bit; ``fast`` is at most 2 levels of 255 from
            them, far less than JPEG's own error, and takes a fraction of the time.
        exif: ``apply`` turns a picture as its EXIF orientation says, as a viewer does; ``ignore``: as LLaVA's code.
        alpha: transparency is laid over ``white``; ``drop`` shows the (often black) colour below it, as LLaVA's code.
        template: how a conversation is written: a name (``dslight.data.conversation``), or a :class:`dslight.Template`;
            default: as the tokenizer's own chat template says, else ``vicuna_v1``.
        thinking: whether answers in the tokenizer's own template begin with thoughts (``enable_thinking``); default: as
            it does where nobody says, if answers can be learnt so.
        image_marks: texts before and behind every image, as a released model was trained with:
            ``["<|vision_start|>", "<|vision_end|>"]``.
        tile_marks: texts between the tiles of an image, see :class:`dslight.TileMarks`.
        global_batch_size: samples per optimizer step, over all ranks.
        micro_batch_size: samples that a rank takes at once; default: all of its share of a step.
        val_batch_size: questions that a rank generates for at once.
        max_length: longest row, visual slots included.
        num_workers: data processes per rank; 0 reads in the training process.
        seed: of the order.
        on_bad: a record that cannot be read ends the run, or is replaced (the same one everywhere, and logged).
        on_unusable: a conversation that teaches nothing, or would be cut inside an image, ends the run, is masked, or
            is ended with its last answer that fits (and is masked where none does). What is masked or ended is counted.
        check: ``full`` hashes all that is read.
        order: how an epoch is ordered; packed rows, batches of one modality or of like lengths, windows of shards.
        keep_tokens: tokenize all training text once, before the first step, and keep the ids beside the shards (4 bytes
            a token): for text that is read in many epochs or runs.
        keep_features: where the vision encoder does not train, keep the features of each view in this folder and read
            them instead of running it, in later epochs, arms and seeds.
        video: frames of videos that the shards keep whole (``data convert --keep-videos``), and how they are seen.
        cache: folder of this node into which shards of a URL are pulled, and where lengths and tokens are kept if the
            shards' folder is read-only.
        cache_bytes: the most bytes of shards in it.
        worker_timeout: seconds to wait for a batch of the data processes before the run ends with the names of the
            records that they have in hand; 0: for ever.
        worker_start: how data processes are started; default: as Python does.

    Example:
        >>> data = dslight.Data(train=["data/mine"], val={"textvqa": "data/eval/textvqa"}, global_batch_size=4)
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4), lm)
        >>> model.connect(data)  # fit and a Trainer do so by themselves
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader())).keys
        ['m...', 'm...', 'm...', 'm...']
    """

    def __init__(
        self,
        train: list[Source | str] | None = None,
        views: ViewPolicy | None = None,
        global_batch_size: int = 32,
        val: dict[str, ValSource | str] | None = None,
        pixels: Pixels = "fast",
        exif: Exif = "apply",
        alpha: Alpha = "white",
        template: TemplateName | Template | None = None,
        micro_batch_size: int | None = None,
        val_batch_size: int = 64,
        max_length: int = 2048,
        num_workers: int = 0,
        seed: int = 0,
        on_bad: OnBad = "raise",
        on_unusable: OnUnusable = "error",
        check: Check = "size",
        order: Order | None = None,
        keep_tokens: bool = False,
        cache: str | None = None,
        cache_bytes: int | None = None,
        worker_timeout: float = 600,
        worker_start: Start | None = None,
        thinking: bool | None = None,
        image_marks: tuple[str, str] | None = None,
        tile_marks: TileMarks | None = None,
        keep_features: KeepFeatures | str | None = None,
        video: Frames = AS_USUAL,
    ) -> None:
        super().__init__()
        if template is not None or image_marks is not None or tile_marks is not None:
            template_named(template or "tokenizer", thinking, image_marks, tile_marks)
        self.sources = [source_of(Source, source, f"data.train[{i}]") for i, source in enumerate(train or ())]
        self.val_sources = {
            name: source_of(ValSource, source, f"data.val.{name}") for name, source in (val or {}).items()
        }
        self.views: Any = views
        self.pixels: Pixels = pixels
        self.exif: Exif = exif
        self.alpha: Alpha = alpha
        self.template: TemplateName | Template | None = template
        self.thinking, self.image_marks, self.tile_marks = thinking, image_marks, tile_marks
        self.global_batch_size, self.micro_batch_size, self.val_batch_size = (
            global_batch_size,
            micro_batch_size,
            val_batch_size,
        )
        self.max_length, self.seed = max_length, seed
        self.workers = Workers(num_workers, worker_timeout, worker_start)
        self.on_bad: OnBad = on_bad
        self.on_unusable: OnUnusable = on_unusable
        self.check: Check = check
        self.order = order or Order()
        self.keep_tokens = keep_tokens
        self.keep_features = KeepFeatures(keep_features) if isinstance(keep_features, str) else keep_features
        self.keeper: Keeper | None = None
        self.video = self.frames = video
        self.cache = _cache(cache, cache_bytes)
        self._plan: TrainPlan | None = None
        self._tokens: list[Tokens] = []
        self._train_loader: TrainLoader[Item] | None = None
        self._continue: dict[str, Any] | None = None
        self._processor: Processor | None = None
        self._suffixes: dict[str, str] = {}

    def connect(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: tuple[int, int],
        slots: SlotLayout,
        suffixes: Mapping[str, str] | None = None,
        needs: ViewNeeds | None = None,
    ) -> Processor:
        """Take from the model what rows depend on; called before data are used.

        Args:
            tokenizer: the language model's, a fast one.
            image_size: (height, width) of the views that the vision encoder takes.
            slots: how many positions an image takes in the sequence.
            suffixes: by evaluation source, what stands behind each of its questions.
            needs: the views that the model looks at, where none are named.

        Returns:
            What makes rows and batches.
        """
        self.views = self.views or views_for(needs or ViewNeeds())
        self._suffixes = dict(suffixes or {})
        self.template = self.template or default_template(tokenizer)
        decoding = (self.pixels, self.exif, self.alpha)
        rows = RowMaker(self.template_of(self.template, self.thinking), tokenizer, self.views, image_size, *decoding)
        self.frames = self.video.seen_by((needs or ViewNeeds()).depth)
        rows.template.tile_texts(tokenizer, slots)
        self._processor = Processor(rows, slots, self.max_length, self.on_unusable, self.frames)
        return self._processor

    def template_of(self, name: TemplateName | Template, thinking: bool | None) -> Template:
        """The template called ``name``, with this data's marks around images, whose answers begin with thoughts or
        not."""
        around = self.image_marks and (self.image_marks[0], self.image_marks[1])
        return template_named(name, thinking, around, self.tile_marks)

    @property
    def processor(self) -> Processor:
        """What makes rows and batches; there once the model is connected."""
        if self._processor is None:
            raise RuntimeError("Data: not connected to a model yet, whose tokenizer it needs: model.connect(data)")
        return self._processor

    @property
    def rows(self) -> RowMaker:
        """What makes rows of samples."""
        return self.processor.rows

    def setup(self, stage: str) -> None:
        """Open the shards: all that is missing fails here, on every rank, before the first step. Only a fit needs what
        is trained on."""
        if stage == "fit":
            self._train_loader = self._continue = None
            self._train_readers = open_train(self.sources, self.check, self.cache)
            if self._processor is not None:
                self.check_vocabulary(self.rows.tokenizer)
                self._plan = self._make_plan()
            elif not self.order.measures:
                make_plan(
                    self._train_readers, self.sources, self.seed, self.global_batch_size
                )  # refused before a model
        self._val_readers = {
            name: open_shards(f"data.val.{name}.root", source.root, self.check, self.cache)
            for name, source in self.val_sources.items()
        }
        for name, reader in self._val_readers.items():
            asks, root = reader.index.questions, f"data.val.{name}.root: {reader.root}"
            if self.val_sources[name].loss and asks.any():
                raise ValueError(f"{root} holds questions, of which there is no loss; leave `loss` out")
            if not self.val_sources[name].loss and not asks.any():
                raise ValueError(f"{root} holds no questions; its records are for training, or for their loss: `loss`")

    def check_vocabulary(self, tokenizer: Any) -> None:
        """See :func:`dslight.data.templates.vocabulary.check_vocabulary`."""
        check_vocabulary(tokenizer, self._train_readers)

    def _asked(self, name: str, rows: RowMaker) -> RowMaker:
        """What makes the rows of a source's questions."""
        thinking = self.val_sources[name].thinking
        if thinking is None or thinking == self.thinking:
            return rows
        if self.template not in (None, "tokenizer"):
            raise ValueError(no_thoughts(name, self.template))
        return replace(rows, template=self.template_of("tokenizer", thinking))

    def _make_plan(self) -> TrainPlan:
        if self.template == "tokenizer":
            check_habits(self.rows.tokenizer, self.thinking)
        measure = self._measure
        lengths, text = None, {key: value for key, value in measure.parts.items() if "tokenizer" in key}
        if self.order.measures:
            text = measure.parts
            lengths = [self._of(lengths_of, reader) for reader in self._train_readers]
        if self.keep_tokens:
            self._tokens = [self._of(tokens_of, reader) for reader in self._train_readers]
        sizes = (self.seed, self.global_batch_size, self.order, self.max_length)
        plan = make_plan(self._train_readers, self.sources, *sizes, lengths, text)
        rank, world = rank_and_world(self.trainer)
        padding = plan.padding(micro_size(self.global_batch_size, self.micro_batch_size, world))
        if padding is not None and rank == 0:
            print(f"data.order: {padding[0]:.1%} of the positions are padding; in plain random order {padding[1]:.1%}")
        return plan

    def keep_text(self, through: Through) -> list[Path]:
        """Tokenize all that is trained on now, and count its lengths if the order needs them; what is there stays.

        Args:
            through: goes through the records of a source.

        Returns:
            The files of tokens, by source.
        """
        self._train_readers = open_train(self.sources, self.check, self.cache)
        if self.template == "tokenizer":
            check_habits(self.rows.tokenizer, self.thinking)
        for reader in self._train_readers if self.order.measures else ():
            self._of(lengths_of, reader, through)
        return [self._of(tokens_of, reader, through).path for reader in self._train_readers]

    def _of(self, make: Callable[..., Kept], reader: ShardReader, through: Through | None = None) -> Kept:
        return make(reader, self._measure, self._kept_folder(reader), self.on_bad, through=through)

    @property
    def _measure(self) -> Measure:
        return Measure(
            self.rows.template,
            called(cast(Any, self.template)),
            self.rows.tokenizer,
            self.views,
            self.rows.image_size,
            self.processor.slots,
            self.exif,
            self.frames,
            self.rows.template.tile_texts(self.rows.tokenizer, self.processor.slots),
        )

    def _kept_folder(self, reader: ShardReader) -> Path:
        if self.cache is None or os.access(reader.root, os.W_OK):
            return reader.root
        folder = self.cache.folder / f"lengths-{reader.manifest.digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def open_features(self) -> FeatureStore | None:
        """The folder of kept features; ``None`` where none are kept.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        keep = self.keep_features
        return None if keep is None else FeatureStore(keep.folder, keep.bytes, keep.on_full)

    def _makers(self) -> tuple[RowMaker, Collate]:
        """What makes rows and batches, with what is known of the features of their views."""
        rows, collate = self.rows, self.processor.collate
        if self.keeper is None or self.trainer is None:
            return rows, collate
        encoder, sets = self.keeper.sets(self.trainer)
        settings = settings_of(rows.views, rows.pixels, rows.exif, rows.alpha, rows.image_size)
        asked = self.keeper.asked(rows.views.grids(), rows.views.fine)
        known = FeatureReader(self.keeper.store, encoder, sets, asked, settings)
        return replace(rows, known=known), replace(collate, encoder=encoder)

    def accumulate(self, world_size: int) -> int:
        """Micro-batches per optimizer step: the value for ``Trainer(accumulate_grad_batches=...)``."""
        micro = micro_size(self.global_batch_size, self.micro_batch_size, world_size)
        return accumulation(self.global_batch_size, world_size, micro)

    def train_dataloader(self) -> TrainLoader[Item]:
        """The resumable loader of this rank; asked for once more in a fit, it goes on where the last one stands.

        Raises:
            ValueError: naming what differs, if the checkpoint to continue is of another order of the data.
        """
        rows, collate = self._makers()
        self._plan = plan = self._plan or self._make_plan()  # the data was set up before it was connected
        dataset = TrainRecords(self._train_readers, plan, rows.train, self.on_bad, rows.text, self._tokens, self.frames)
        loader = train_loader(dataset, plan, collate, self.micro_batch_size, self.workers, self.trainer)
        if self._continue is not None:
            loader.load_state_dict(self._continue)
            self._continue = None
        elif self._train_loader is not None:  # trainer.reload_dataloaders_every_n_epochs
            loader.epoch, loader.consumed = self._train_loader.epoch, self._train_loader.consumed
        self._train_loader = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data, kept here too: of the loaders' states in a checkpoint, Lightning leaves
        out those that were saved at the end of an epoch."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def differs(self, state: dict[str, Any]) -> str | None:
        """In what the state of a training loader is of another order of the data; ``None``: it is of this one."""
        self._plan = plan = self._plan or self._make_plan()
        found = differing(state, plan)
        return None if found is None else found[1]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue there with the next loader."""
        self._continue = state_dict.get("train")

    def val_dataloader(self) -> list[EvalLoader[Item]]:
        """One loader per evaluation source, in the order of ``val``; a rank's longest questions come first."""
        rank, world = rank_and_world(self.trainer)
        loaders = []
        rows, plain = self._makers() if self._val_readers else (self.rows, self.processor.collate)
        for name, reader in self._val_readers.items():
            suffix, source = self._suffixes.get(name, ""), self.val_sources[name]
            sizes = (rank, world, self.val_batch_size, self.workers)
            lengths = partial(question_lengths, reader, self._measure, suffix)
            by_length = lengths if reader.remote is None else None  # of remote shards, none is pulled for this alone
            collate = replace(plain, once=True)
            asking = Asking(self._asked(name, rows), suffix, source.frames)
            dataset: Any = QuestionRecords(reader, asking, self.frames)
            if source.loss:  # a row of padding is one that teaches nothing
                collate, by_length = replace(collate, on_unusable="shrink"), None
                dataset = ConversationRecords(reader, rows.train, self.frames)
            items = len(dataset) if source.limit is None else min(source.limit, len(dataset))
            record = getattr(dataset, "record", int)
            loaders.append(EvalLoader(dataset, items, collate, *sizes, by_length, record))
        return loaders


def no_thoughts(name: str, template: TemplateName | Template) -> str:
    """Why a source cannot be asked with or without thoughts in this template."""
    return f"data.val.{name}.thinking: only data.template: tokenizer knows of thoughts, not {called(template)}"


def _cache(folder: str | None, limit: int | None) -> Cache | None:
    if limit is not None and (limit < 1 or folder is None):
        raise ValueError(
            f"data.cache_bytes: {limit}; " + ("name a folder: data.cache" if folder is None else "1 or more")
        )
    return None if folder is None else Cache(Path(folder), limit)


def open_shards(key: str, root: str, check: Check, cache: Cache | None = None) -> ShardReader:
    """Open a folder of shards for reading; errors begin with ``key``, the place of the path in the recipe."""
    if is_remote(root) and cache is None:
        raise ValueError(
            f"data.cache: missing; {key} is {root}, and remote shards are pulled into a folder of this node"
        )
    if not is_remote(root) and not Path(root).is_dir():
        raise FileNotFoundError(f"{key}: {root!r} is no folder (seen from {Path.cwd()})")
    try:
        if not is_remote(root):
            return ShardReader(root, check)
        remote = cast(Cache, cache).open(root)
        return ShardReader(remote.root, check, remote)
    except ShardError as error:
        raise ShardError(f"{key}: {error}") from error


def open_train(sources: list[Source], check: Check, cache: Cache | None = None) -> list[ShardReader]:
    """The readers of all training sources."""
    if not sources:
        raise ValueError("data.train: names no source")
    readers = [open_shards(f"data.train[{i}].root", source.root, check, cache) for i, source in enumerate(sources)]
    for i, reader in enumerate(readers):
        if reader.index.questions.all():
            raise ValueError(f"data.train[{i}].root: {reader.root} holds questions; its records are for data.val")
    return readers


def make_plan(
    readers: list[ShardReader],
    sources: list[Source],
    seed: int,
    global_batch: int,
    order: Order | None = None,
    max_length: int = 0,
    lengths: Sequence[np.ndarray] | None = None,
    text: Mapping[str, str] | None = None,
) -> TrainPlan:
    """The plan over the training sources; arguments as in :class:`~dslight.data.plan.TrainPlan`, ``lengths`` by
    source."""
    planned = [
        PlanSource(
            reader.manifest.digest,
            len(reader),
            source.weight,
            np.diff(reader.starts),
            None if lengths is None else lengths[i],
        )
        for i, (reader, source) in enumerate(zip(readers, sources, strict=True))
    ]
    return TrainPlan(tuple(planned), seed, global_batch, order or Order(), max_length, text or {})


def micro_size(global_batch: int, micro: int | None, world: int) -> int:
    """Rows that a rank takes at once: as asked for, or all of its share of a step."""
    return micro if micro is not None else max(1, global_batch // world)


def rank_and_world(trainer: Trainer | None) -> tuple[int, int]:
    """This process's place among those that read different data (fewer than all under tensor parallelism)."""
    kwargs = None if trainer is None else trainer.distributed_sampler_kwargs
    return (0, 1) if kwargs is None else (kwargs["rank"], kwargs["num_replicas"])


def train_loader(
    dataset: TrainRecords[Any],
    plan: TrainPlan,
    collate: Callable[[list[Any]], Any],
    micro: int | None,
    workers: Workers,
    trainer: Trainer | None,
) -> TrainLoader[Any]:
    """The loader of this rank under ``trainer``, whose accumulation must fit the batch sizes.

    Raises:
        ValueError: naming ``trainer.accumulate_grad_batches`` if it does not.
    """
    rank, world = rank_and_world(trainer)
    size = micro_size(plan.global_batch, micro, world)
    if trainer is None:
        return TrainLoader(dataset, plan, collate, rank, world, size, workers)
    needed = accumulation(plan.global_batch, world, size)
    if trainer.accumulate_grad_batches != needed:
        raise ValueError(
            f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches}, but global_batch_size "
            f"{plan.global_batch} = {world} ranks x micro_batch_size {size} x {needed}; set it to {needed}"
        )
    return TrainLoader(dataset, plan, collate, rank, world, size, workers, FitProgress(trainer))
