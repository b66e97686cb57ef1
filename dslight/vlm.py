"""VLM: the multimodal language model, composed of four parts, and what Lightning's Trainer drives.

    views -> vision encoder -> stacking scheduler -> maps [M, h, w, C] per level -> projector -> maps [.., D]
          -> stacking scheduler -> slots [S+1, N, D] -> language model

Slot 0 fills the visual positions of the text sequence; slot s is added to the residual stream there, at the input of
layer ``sites[s-1]``. Everything else is decided by the parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dslight.components import shared_pictures
from dslight.components.component import warn_of_idle_hooks
from dslight.components.decoders.causal_lm import HFCausalLM
from dslight.components.kept_features import Keeper
from dslight.components.language_model import LanguageModel
from dslight.components.projector import Projector
from dslight.components.schedulers.presets import LowResolution
from dslight.components.stacking import StackingScheduler
from dslight.components.vision_encoder import VisionEncoder
from dslight.components.waiting import Waiting
from dslight.errors import UserError
from dslight.features.views import KnownViews
from dslight.metrics import benchmarks
from dslight.metrics.base import Answer, TextMetric
from dslight.places import TokenGrid
from dslight.positions import clip_grids, token_grids
from dslight.processor import Processor
from dslight.train.optim import Stage, under
from dslight.train.parallel import materialise, shard, states_by_name, states_by_number
from dslight.types import Batch, Question, ViewNeeds, Views, VisualTokens
from dslight.written import Written, importable, written, written_behind


class VLM(pl.LightningModule, Written):
    """A multimodal language model out of four parts.

    Args:
        vision_encoder: views to features.
        projector: made once the widths are known: called with (C of each level, D).
        stacking: features to slots; ``None``: no stack, :class:`~dslight.components.LowResolution`.
        language_model: slots and text to logits.

    Raises:
        ValueError: when the parts do not fit each other; the message starts with the argument to change.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4), lm)
        >>> model.stacking.sites  # the layers of the language model that the crops' tokens are added to
        (1, 2, 3, 4)
        >>> answer = model.answer("What is written here?", images=["page.png"], max_new_tokens=5)
        >>> model.train_with({"projector": 1e-3})  # what trains; then lightning.Trainer(...).fit(model, data)
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        projector: Callable[[list[int], int], Projector],
        stacking: StackingScheduler | None,
        language_model: LanguageModel,
    ) -> None:
        super().__init__()
        chosen = LowResolution() if stacking is None else stacking
        with under("stacking"):
            chosen.check(vision_encoder, language_model.depth)
            language_model.check_sites(chosen.sites)
        self.vision_encoder = vision_encoder
        self.stacking: StackingScheduler = chosen
        with under("projector"):
            self.projector = projector(chosen.widths(vision_encoder), language_model.width)
            self.projector.out_grid(chosen.map_grid(vision_encoder))
            if vision_encoder.native and not self.projector.local:
                raise ValueError(
                    f"{type(self.projector).__name__} looks at whole maps, and {type(vision_encoder).__name__} gives "
                    f"maps of any size piece by piece; choose a projector that is local, such as MLPProjector"
                )
        chosen.connect(language_model.width)  # after all others, which then start alike whatever the stacking
        self.language_model = language_model
        for part in self.parts().values():
            warn_of_idle_hooks(part)
        self.stage: Stage | None = None
        self.keeper: Keeper | None = None  # of the encoder's features, where the data say so
        self.read_weights: Callable[[], None] | None = None  # of parts that are built without memory, once sharded
        self._tokenizer: Any = None
        self.precision: Any = None  # a plugin of Lightning's, for what is computed outside of a Trainer
        self._processor: Processor | None = None
        self.metrics = nn.ModuleDict()
        self.generation: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, benchmarks.Benchmark] = {}
        self.validated: dict[str, bool] = {}
        """The sources of the validation in the order of their loaders; whether it is the loss that is wanted."""
        self.answers: dict[str, list[Answer]] = {}
        """By source, of this rank's share of the last validation, in the order in which they were generated."""
        self.seconds: dict[str, float] = {}
        """By source, what this rank's share took, data included."""
        self._clock = 0.0
        self._asked: tuple[str, dict[str, Any]] = ("", {})  # the source whose questions are being asked, and how
        self._waiting = Waiting()
        self._questions: list[Sequence[Question]] = []  # of the batches that wait
        self._sums: Tensor | None = None  # loss and tokens of the step so far
        self.step_loss: Tensor | None = None  # of all ranks, a sum over tokens, up to the last micro-batch

    def parts(self) -> dict[str, nn.Module]:
        """The four parts by the names that recipes use."""
        return {
            "vision_encoder": self.vision_encoder,
            "projector": self.projector,
            "stacking": self.stacking,
            "language_model": self.language_model,
        }

    def to_recipe(self) -> dict[str, Any]:
        """The constructor's call as the section ``model`` of a recipe (:mod:`dslight.written`)."""
        call = written(self)
        parts = {name: written(part) for name, part in self.parts().items()}
        parts["projector"] = written_behind(self.projector, 2)
        made = {name: parts.get(name, value) for name, value in call.pop("init_args", {}).items()}
        return made if call.get("class_path") == importable(VLM) else {**call, **made}

    def train_with(self, stage: Stage | Mapping[str, Any]) -> None:
        """Let ``stage`` say what trains. What lies behind all of the encoder's taps is frozen: no gradient gets there.

        Args:
            stage: the stage, or its ``train``: part -> learning rate, or all of its settings.

        Raises:
            ValueError: as :meth:`Stage.freeze`.
        """
        stage = Stage.of(stage)
        if self.stacking.starts_closed and "stacking" not in stage.train:
            raise ValueError(
                "train: the stacking's gates start closed, so nothing would ever come through; give stacking a "
                "learning rate, or its gates an init other than 0"
            )
        self.stage = stage
        stage.freeze(self.parts())
        unused, *others = (self.vision_encoder.unused(tap) for tap in self.stacking.taps())
        for module in unused:
            if all(module in other for other in others):
                module.requires_grad_(False)

    @property
    def tokenizer(self) -> Any:
        """The language model's; read when it is first asked for.

        Raises:
            ValueError: where the language model does not know one.
        """
        if self._tokenizer is None:
            self._tokenizer = self.language_model.load_tokenizer()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def processor(self) -> Processor:
        """What it is asked through: that of the data which it has met, else the views that its stacking looks at and
        its tokenizer's own template.
        """
        if self._processor is None:
            slots = self.stacking.slot_layout(self.vision_encoder, self.projector)
            longest = self.language_model.max_positions or Processor.max_length
            sizes = (self.vision_encoder.image_size, slots, longest)
            self._processor = Processor.of(self.tokenizer, self.needs, *sizes)
        return self._processor

    @property
    def needs(self) -> ViewNeeds:
        """The views that are made where nobody names others: of the stacking and the encoder."""
        encoder = self.vision_encoder
        return replace(self.stacking.needs, native=encoder.native, depth=encoder.depth_in_time)

    def connect(self, data: Any) -> None:
        """Tell ``data`` (a :class:`dslight.Data`) what its rows depend on; be asked and judged as it says.

        Under a Trainer this happens by itself.

        Raises:
            ValueError: for views that the stacking cannot place, or a benchmark that is not known.
        """
        self.asked = {}
        for name, source in data.val_sources.items():
            if not source.loss:
                source.benchmark = benchmarks.of(name, source.benchmark)
                with under(f"data.val.{name}"):
                    self.asked[name] = benchmarks.row_of(name, source)
        judged = self.asked
        self._processor = data.connect(
            tokenizer=self.tokenizer,
            image_size=self.vision_encoder.image_size,
            slots=self.stacking.slot_layout(self.vision_encoder, self.projector),
            suffixes={name: benchmark.suffix for name, benchmark in judged.items()},
            needs=self.needs,
        )
        self.check_views(data.views)
        store = data.open_features() if hasattr(data, "open_features") else None
        self.keeper = None
        if store is not None:
            self.keeper = data.keeper = Keeper(self.vision_encoder, self.stacking, store, self.stage is not None)
        stops = data.processor.stop_ids
        self.judge(
            self.tokenizer,
            metrics={name: benchmark.build() for name, benchmark in judged.items()},
            generation={
                name: {"max_new_tokens": benchmark.max_new_tokens, "eos_token_id": stops}
                for name, benchmark in judged.items()
            },
        )
        self.validated = {name: source.loss for name, source in data.val_sources.items()}

    def check_views(self, views: Any) -> None:
        """Refuse a :class:`~dslight.data.images.ViewPolicy` whose views the stacking cannot place.

        Raises:
            ValueError: starting with the argument to change.
        """
        name, native = type(views).__name__, bool(getattr(views, "native", False))
        if native and not self.vision_encoder.native:
            raise ValueError(
                f"data.views: {name} gives each image a size of its own, and {type(self.vision_encoder).__name__} "
                f"takes views of one; choose SingleView or another of one size"
            )
        if self.vision_encoder.native and not native:
            raise ValueError(
                f"data.views: {name} gives views of one size, and {type(self.vision_encoder).__name__} takes each "
                f"image at its own; choose NativeViews"
            )
        padded = getattr(views, "fit", "pad") == "pad"
        with under("stacking"):
            self.stacking.check_views(list(views.grids()), int(getattr(views, "fine", 0)), padded)

    def judge(
        self, tokenizer: Any, metrics: Mapping[str, TextMetric], generation: Mapping[str, dict[str, Any]]
    ) -> None:
        """What validation needs: a tokenizer to read answers with, and by source a metric and ``generate`` options."""
        self.tokenizer = tokenizer
        self.metrics = nn.ModuleDict(metrics)
        self.generation = dict(generation)
        self.validated = dict.fromkeys(metrics, False)

    # --- the method

    def forward(self, batch: Batch) -> Tensor:
        """Next-token logits ``[B, T, vocabulary]``."""
        visual = self.see(batch.views)
        given = batch.input_ids, batch.attention_mask, batch.visual_mask, visual, batch.segments
        if self.language_model.bidirectional == "prompt":
            return self.language_model(*given, asked=batch.asked)
        return self.language_model(*given)

    def loss(self, batch: Batch, visual: VisualTokens | None = None) -> tuple[Tensor, Tensor]:
        """Next-token loss, summed over the supervised tokens of a batch with labels, and their number; where answers
        have weights, the weighted sum, and that of the weights. ``visual``: what its views are seen as, where that is
        known.
        """
        return self.language_model.loss(batch, self.see(batch.views) if visual is None else visual)

    def see(self, views: Views | None) -> VisualTokens:
        """All visual tokens of a batch: slots ``[S+1, N, D]``.

        A batch without images looks at a blank one and keeps none of its tokens: under sharding every rank has to run
        every module in every step, or the others wait for it forever.
        """
        seen = views if views is not None else self._blank()
        encoder, shown = (self.vision_encoder, seen) if self.keeper is None else self._known(seen, views is None)
        maps = self.stacking(encoder, shown)  # per level [M, height, width, C]
        visual = self.stacking.lay_out(self.projector(maps), seen)  # slots [S+1, N, D]
        if views is None:
            return visual.none()
        return replace(visual, grids=self._token_grids(views)) if self.language_model.axes > 1 else visual

    def _token_grids(self, views: Views) -> tuple[TokenGrid, ...]:
        layout = self.stacking.slot_layout(self.vision_encoder, self.projector)
        images = zip(views.grids, views.sizes or [None] * len(views), views.base_pieces, strict=True)
        return clip_grids(
            [token_grids(layout, *each) for each in images], views.clips, self.vision_encoder.tokens_per_second
        )

    def _known(self, views: Views, blank: bool) -> tuple[Any, Views]:
        """The views as the stacking hands them on, and who takes them, where features of the encoder are kept."""
        assert self.keeper is not None
        if blank:
            views = self.keeper.blank(views)
        if not isinstance(views, KnownViews):  # asked beside the data
            return self.vision_encoder, views
        return self.keeper.of(views, self.trainer), views.numbered()

    def answer(self, question: str | Sequence[str], images: Any = None, videos: Any = None, **options: Any) -> Any:
        """What the model says: no Trainer is needed, and every module stays in the mode that it is in.

        Args:
            question: one, or a batch of several; asked as they are, in the model's template.
            images: what it is about: pictures of PIL, files, or uint8 arrays ``[H, W, 3]``; ``None``: nothing. Of
                several questions, an entry for each (see :meth:`dslight.processor.Processor.ask`).
            videos: files, frames in an array ``[F, H, W, 3]`` or a list, or a :class:`dslight.Video`; as ``images``.
            options: of transformers' ``generate``; greedy, at most 64 tokens.

        Returns:
            The answer, or a list of them.

        Raises:
            ValueError: for what is no image or video, a question that is too long, or a model without a tokenizer.
        """
        batch = self.processor.ask(question, images, videos).to(self.device)
        with self.evaluating():
            said = self.answer_batch(
                batch, **{"max_new_tokens": 64, "eos_token_id": self.processor.stop_ids, **options}
            )
        return said[0] if isinstance(question, str) else said

    def show(self, image: Any) -> Any:
        """The views that it sees of a picture, as a figure of matplotlib, with how many tokens become of them.

        Raises:
            ValueError: for what is no image.
        """
        from dslight.pictures.figures import shown

        return shown(self, image)

    def explain(self, question: str, image: Any, answer: str | None = None) -> Any:
        """Where in a picture an answer came from, as a figure of matplotlib: a heat map per stack, over the views that
        it was made of. Red speaks for the answer, blue against it (gradient times input, see
        :mod:`dslight.diagnostics.heat`).

        Args:
            question: as to :meth:`answer`.
            image: one, or several in a list.
            answer: whose origin is wanted; default: its own.

        Raises:
            ValueError: for what is no image, or where the projector's tokens show no place of it.
        """
        from dslight.pictures.figures import explained

        return explained(self, question, image, answer)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, without gradients, in the precision of the Trainer that drives or trained it; every
        module is left as it was.
        """
        modes = {module: module.training for module in self.modules()}
        try:
            precision = self.trainer.precision_plugin
        except RuntimeError:  # no Trainer
            precision = self.precision
        self.eval()
        try:
            with torch.inference_mode(), nullcontext() if precision is None else precision.forward_context():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def generate(self, batch: Batch, visual: VisualTokens | None = None, **options: Any) -> Tensor:
        """Greedy answers to a batch of left-padded prompts: the new token ids ``[B, new]``; ``visual``: what its views
        are seen as, where that is known.
        """
        if isinstance(self, FSDPModule):
            options["synced_gpus"] = True  # a rank whose answers are done goes on until all are: layers are collectives
        seen = self.see(batch.views) if visual is None else visual
        return shared_pictures.generate(self.language_model, batch, seen, **options)

    def _blank(self) -> Views:
        grid, fine = self.stacking.smallest_grid, self.stacking.fine
        count, size = (1 + grid[0] * grid[1]) * (1 + fine**2), self.vision_encoder.image_size
        return Views(torch.zeros(count, 3, *size, dtype=torch.uint8, device=self.device), [grid], fine, [size])

    # --- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Next-token loss, a mean over the supervised tokens of all ranks and all micro-batches of a step.

        Ranks average gradients and Lightning divides by the number of micro-batches; both are undone here. How many
        tokens a step has is known when its last micro-batch is through: then :meth:`on_before_optimizer_step` divides.
        """
        assert batch.labels is not None
        loss, count = self.loss(batch)
        sums = torch.stack([loss.detach().float(), count.float()])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        if self.trainer.accumulate_grad_batches == 1:
            self.step_loss = sums[0]
            return loss * (self.trainer.world_size / self._log_loss(sums))
        self._sums = sums = sums if self._sums is None else self._sums + sums
        self.step_loss = sums[0]
        return loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """From the gradient of a sum over the tokens of the step to that of their mean; before clipping."""
        if self._sums is None:
            return
        tokens = float(self._log_loss(self._sums))
        self._sums = None
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(tokens)

    @property
    def gradient_divisor(self) -> Tensor | float:
        """What the gradients are still to be divided by: the step's tokens, once several micro-batches are through."""
        return 1.0 if self._sums is None else _divisor(self._sums)

    def _log_loss(self, sums: Tensor) -> Tensor:
        """Log the mean; returns the number of tokens, or the sum of their weights."""
        tokens = _divisor(sums)
        self.log("train/loss", sums[0] / tokens, prog_bar=True, batch_size=1)
        return tokens

    def setup(self, stage: str) -> None:
        """Meet the Trainer's data."""
        data = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "connect"):
            self.connect(data)

    def configure_model(self) -> None:
        """Shard the parts when the strategy has a device mesh (Lightning may call this more than once)."""
        mesh = self.device_mesh
        if mesh is not None:
            strategy: Any = self.trainer.strategy
            policy, offload = getattr(strategy, "policy", None), getattr(strategy, "offload", None)
            shard(self, self.parts(), mesh, methods=("generate", "loss"), policy=policy, offload=offload)
            materialise(self, getattr(strategy, "parameter_device", strategy.root_device))
            if self.read_weights is not None:
                self.read_weights()
                self.read_weights = None

    def configure_optimizers(self) -> Any:
        """The stage's optimizer over the parts that train."""
        if self.stage is None:
            raise RuntimeError(
                "VLM: nothing trains yet; say what does, and how fast, before Trainer.fit: "
                'model.train_with({"projector": 1e-3})'
            )
        return self.stage.optimizers(self.parts(), int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write optimizer states by parameter name, so that a sharded run can continue an unsharded one and the
        other way round; and how the model was made and is asked, so that the checkpoint can be opened without a recipe.
        """
        asked = {} if self._processor is None else {"data": self._processor.to_recipe()}
        checkpoint["recipe"] = {"model": self.to_recipe(), **asked}
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        for i, optimizer in enumerate(self.trainer.optimizers if "optimizer_states" in checkpoint else []):
            numbered = [p for group in optimizer.param_groups for p in group["params"]]
            order = list(names.values()) if isinstance(self, FSDPModule) else [names[id(p)] for p in numbered]
            checkpoint["optimizer_states"][i] = states_by_name(checkpoint["optimizer_states"][i], order)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the optimizer the numbers that it expects.

        Raises:
            UserError: for a run's checkpoint that does not hold all weights, which a Trainer of one's own cannot find.
        """
        if elsewhere := checkpoint.get("elsewhere"):
            raise UserError(
                f"this checkpoint does not hold the weights of the {' and the '.join(elsewhere)}, which did not train; "
                f"continue it with dslight fit, open it with dslight.load, or train with checkpoint_holds: all"
            )
        if not isinstance(self, FSDPModule):  # there the strategy has loaded the states already, by name
            states = checkpoint.get("optimizer_states", [])
            checkpoint["optimizer_states"] = [states_by_number(state) for state in states]

    # --- validation

    def on_validation_epoch_start(self) -> None:
        """Forget the answers of the last round."""
        self.answers = {source: [] for source in self.metrics}
        self.seconds = dict.fromkeys(self.metrics, 0.0)
        self._losses = {source: torch.zeros(2, dtype=torch.float64) for source, loss in self.validated.items() if loss}
        self._clock = time.perf_counter()
        self._asked, self._waiting, self._questions = ("", {}), Waiting(), []

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Generate answers, those of several batches together, and let the source's metric judge them; or sum the loss
        of a source of conversations.
        """
        if dataloader_idx >= len(self.validated):
            raise RuntimeError("validation: nobody says how answers are judged; use dslight.Data(val={...})")
        source = list(self.validated)[dataloader_idx]
        if self.validated[source]:
            self._losses[source] += torch.stack([part.detach().double().cpu() for part in self.loss(batch)])
            return
        options, visual, prompts = self.padding(self.generation[source]), None, None
        if (source, options) != self._asked:
            self._write()  # the answers to the last questions of the source before
        self._asked = source, options
        if (type(self).generate, type(self).answer_batch) != (VLM.generate, VLM.answer_batch):  # a subclass's own way
            self._judge(batch.questions, self.answer_batch(batch, **self.generation[source]))
            self._tick()
            return
        if not isinstance(self, FSDPModule):  # whose ranks take equally many steps, batch by batch
            visual = self.see(batch.views)
            prompts = shared_pictures.read(self.language_model, batch, visual, options)
        if prompts is None:
            self._judge(batch.questions, self.texts(self.generate(batch, visual, **options)))
        else:
            self._waiting.add(prompts)
            self._questions.append(batch.questions)
            if self._waiting.full:
                self._write()
        self._tick()

    def _write(self) -> None:
        """Answer, and judge, all questions that wait."""
        asked, self._questions = self._questions, []
        if asked:
            written = self._waiting.write(cast(HFCausalLM, self.language_model), **self._asked[1])
            for questions, ids in zip(asked, written, strict=True):
                self._judge(questions, self.texts(ids))
            self._tick()

    def _judge(self, questions: Sequence[Question], replies: Sequence[str]) -> None:
        source = self._asked[0]
        verdicts = cast(TextMetric, self.metrics[source]).update_questions(replies, questions)
        answers = map(Answer, questions, replies, verdicts)
        self.answers[source] += [answer for answer in answers if answer.question.valid]

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds[self._asked[0]] += now - self._clock
        self._clock = now

    def answer_batch(self, batch: Batch, **options: Any) -> list[str]:
        """Generated answers to a batch, special tokens dropped; ``options`` as in transformers' ``generate``."""
        return self.texts(self.generate(batch, **self.padding(options)))

    def padding(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of ``generate``, with the token that stands behind an answer that is done."""
        pad = self.tokenizer.pad_token_id
        return {"pad_token_id": self.tokenizer.eos_token_id if pad is None else pad, **options}

    def texts(self, ids: Tensor) -> list[str]:
        """Answers in words, of new ids ``[B, new]``."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def on_validation_epoch_end(self) -> None:
        """Log ``val/<source>/<score>`` where there are scores, ``val/<source>/loss`` where that is wanted, a mean over
        the supervised tokens of all ranks, and ``speed/<source>/questions_per_second``.
        """
        with self.trainer.precision_plugin.val_step_context():
            self._write()
        for source, metric in self.metrics.items():
            assert isinstance(metric, TextMetric)
            for name, value in metric.compute().items():
                if not value.isnan():
                    self.log(f"val/{source}/{name}", value, prog_bar=name == metric.headline)
            metric.reset()
            asked = [float(len(self.answers[source])), self.seconds[source]]
            sums = torch.tensor(asked, dtype=torch.float32, device=self.device)
            answered, seconds = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            rate = answered * self.trainer.world_size / max(seconds, 1e-9)
            self.log(f"speed/{source}/questions_per_second", rate)
        for source, sums in self._losses.items():
            total, count = self.trainer.strategy.reduce(sums.float().to(self.device), reduce_op="sum").tolist()
            self.log(f"val/{source}/loss", total / (count or 1.0))


def _divisor(sums: Tensor) -> Tensor:
    """What a (sum of losses, sum of weights) is a mean by: 1 where nothing is supervised."""
    return torch.where(sums[1] > 0, sums[1], torch.ones_like(sums[1]))
