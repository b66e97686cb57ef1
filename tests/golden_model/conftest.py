"""The cases of the authors' code as they are found in a folder, each built from its own ``config.json``.

Nothing about a case is written down here but what its words mean: which point on our axes a mode and its flags are.
A test asks for a kind of case by the name of its argument (``logits_case``, ``gradients_case``, ...) and runs once for
each that the folder holds. So the same tests judge the committed folder and any other (``DSLIGHT_GOLDENS``).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dslight.checkpoints import load_checkpoint
from dslight.components import (
    AveragePoolProjector,
    DeepStack,
    DeepStackHD,
    DeepStackL,
    DeepStackV,
    HFCausalLM,
    HFVisionEncoder,
    LowResolution,
    MLPProjector,
    Projector,
    SequenceConcat,
    Stack,
)
from dslight.data.collate import Collate, Item
from dslight.data.conversation import IMAGE
from dslight.types import Batch, Question, Views
from dslight.vlm import VLM

COMMITTED = Path(__file__).parents[1] / "golden" / "deepstack_vl"
ROOT = Path(os.environ.get("DSLIGHT_GOLDENS", COMMITTED))

SAMPLERS = {"2d": "2d", "1d": "1d", "grid": "block"}  # their name -> ours
DECODERS = {"deepstack_llama": "llama", "deepstack_phi": "phi3"}
FLAGS = {
    "baseline": [[]],
    "baseline_scaledown": [["scaledown_clip"]],
    "deepstack_l": [
        [],
        ["dummy_local"],
        ["only_global_features"],
        ["global_and_local"],
        ["string_woglobal"],
        ["string_withglobal"],
    ],
    "deepstack_l_hd": [[]],
    "deepstack_v": [["deepstack_vit", "lsvit_start_layer_N"]],
}
"""The modes and, for each, the sets of flags that we know the meaning of."""


class NormalisedPixels(HFVisionEncoder):
    """Takes pixels as the goldens hold them: normalised already."""

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels


@dataclass(frozen=True)
class Case:
    """One case: its settings, its tensors, and the product's own parts that have to give the same."""

    root: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.root / self.name / "config.json").read_text())

    # --- what it is

    @cached_property
    def family(self) -> str:
        """Mode and flag.

        Raises:
            ValueError: for words that we do not know the meaning of.
        """
        mode, flags = self.config["mode"], list(self.config["ablation_flags"])
        known = {
            "mode": (mode, FLAGS),
            "architecture": (self.config["architecture"], DECODERS),
            "sampling": (self.config["sampling"], SAMPLERS),
            "vision_select_feature": (self.config["vision_select_feature"], ["patch"]),
            "projector": (self.config["projector"], ["linear", *(f"mlp{n}x_gelu" for n in range(1, 9))]),
            "projector_gelu": (self.config["projector_gelu"], ["exact (erf)"]),
            "padding_side": (self.config["padding_side"], ["right", "left"]),
            "dtype": (self.config["dtype"], ["float32", "float64"]),
            "image_token_index": (self.config["image_token_index"], [IMAGE]),
        }
        for key, (value, values) in known.items():
            if value not in values:
                raise ValueError(f"{self.name}: {key} {value!r} is not understood")
        plain = sorted(re.sub(r"_layer_\d+$", "_layer_N", flag) for flag in flags)
        if plain not in [sorted(known) for known in FLAGS[mode]]:
            raise ValueError(f"{self.name}: the flags {flags} of mode {mode} are not understood")
        if mode == "deepstack_l_hd" and isqrt(self.config["num_crops"]) ** 2 != self.config["num_crops"]:
            raise ValueError(f"{self.name}: num_crops {self.config['num_crops']} is no square")
        return mode if mode != "deepstack_l" or not flags else flags[0]

    @cached_property
    def kind(self) -> str:
        """What is to be compared."""
        if "kind" in self.config:
            return str(self.config["kind"])
        assert self.family
        if self.dropped:
            return "refused"
        if "max_new_tokens" in self.config:
            return "generated"
        if "gradient_l2_norms" in self.config:
            return "gradients"
        if "images_file" in self.config:
            return "images"
        limit = self.config["max_length"]
        return "truncated" if limit and self.outputs["logits"].shape[1] == limit else "logits"

    @property
    def start(self) -> int:
        """The first layer of the language model, or of the encoder, that gets a stack."""
        found = [re.fullmatch(r"lsvit_start_layer_(\d+)", flag) for flag in self.config["ablation_flags"]]
        return next((int(match[1]) for match in found if match), self.config["start"])

    @property
    def sampler(self) -> str:
        """By our name."""
        return SAMPLERS[self.config["sampling"]]

    @property
    def wanted_sites(self) -> list[int]:
        """The layers that the settings ask for, there or not."""
        count = {"only_global_features": 1, "global_and_local": self.config["num_crops"] + 1}
        stacked = self.family in ("deepstack_l", "deepstack_l_hd", "deepstack_v", "dummy_local", *count)
        interval = 1 if self.family == "deepstack_v" else self.config["interval"]
        number = count.get(self.family, self.config["num_crops"]) if stacked else 0
        return [self.start + interval * index for index in range(number)]

    @property
    def depth(self) -> int:
        """The number of layers of the part that stacks enter."""
        if self.family == "deepstack_v":
            return self.config["vision_layers"] + self.config.get("vision_post_encoder_layers", 0)
        return self.config["llm_layers"]

    @property
    def dropped(self) -> list[int]:
        """The layers that are not there: their stacks vanish without a word in the authors' code."""
        return [site for site in self.wanted_sites if site >= self.depth]

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(rows, columns) per image; nothing looks at crops where the case has no grids."""
        grids = self.config["grids"]
        count = len(self.ids) if grids is None else 0
        return [(grid["rows"], grid["columns"]) for grid in grids or []] + [(0, 0)] * count

    # --- its tensors

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.root / name)

    def holds(self, pattern: str) -> bool:
        """Whether an output's name begins with ``pattern``."""
        return any(re.match(pattern, name) for name in self.outputs)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self.tensors(self.config["inputs_file"])

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """With the groups that another case's file holds, and as of the Pillow at hand."""
        found = self.tensors(f"{self.name}/outputs.safetensors")
        other = self.config.get("stack_groups_file")
        if other:
            found["stack_groups"] = self.tensors(other)["stack_groups"]
        newer = self.root / self.name / "outputs_pillow13.safetensors"
        if newer.exists() and int(PIL.__version__.split(".")[0]) >= 13:
            found |= load_file(newer)
        return found

    @cached_property
    def ids(self) -> list[list[int]]:
        """Per row, without padding."""
        if "input_ids" in self.inputs:
            rows = zip(self.inputs["input_ids"], self.inputs["attention_mask"].bool(), strict=True)
            return [row[real].tolist() for row, real in rows]
        count = sum(name.startswith("input_ids.") for name in self.inputs)
        return [self.inputs[f"input_ids.{i}"][0].tolist() for i in range(count)]

    def weights(self, folder: Path) -> Path:
        """One file with all tensors of the case under the authors' names."""
        own = self.root / self.name / "weights_extra.safetensors"
        extra = [self.tensors(self.config["extra_weights_file"])] if "extra_weights_file" in self.config else []
        extra += [load_file(own)] if own.exists() else []
        if not extra:
            return self.root / self.config["weights_file"]
        state = self.tensors(self.config["weights_file"])
        added = {name: tensor for tensors in extra for name, tensor in tensors.items()}
        merged = {name: tensor for name, tensor in (state | added).items() if not self._replaced(name, added)}
        save_file(merged, folder / "weights.safetensors")
        return folder / "weights.safetensors"

    def _replaced(self, name: str, added: dict[str, Tensor]) -> bool:
        """Whether a tensor of the shared file has no place in this case's decoder: a layer too many, or one of the
        matrices that Phi-3 has in one.
        """
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= self.config["llm_layers"]:
            return True
        fused = re.sub(r"\.[qkv]_proj\.", ".qkv_proj.", re.sub(r"\.(gate|up)_proj\.", ".gate_up_proj.", name))
        return bool(layer) and fused != name and fused in added

    # --- the product's parts

    def scheduler(self) -> DeepStack:
        config, sampler = self.config, self.sampler
        start, interval, count = self.start, config["interval"], config["num_crops"]
        tap = config["vision_select_layer"]
        options = {"num_stacks": count, "start": start, "interval": interval, "tap": tap}
        match self.family:
            case "baseline" | "baseline_scaledown":
                return LowResolution(tap=tap)
            case "deepstack_l":
                return DeepStackL(**options, sampler=sampler)
            case "dummy_local":
                return DeepStackL(**options, source="base")
            case "only_global_features":  # the crops are not used at all
                return DeepStack(stacks=[Stack([start], "base", "identity")], base="zero", tap=tap)
            case "global_and_local":
                first, *rest = self.wanted_sites
                stacks = [Stack([first], "base", "identity"), Stack(rest, "crops", sampler)]
                return DeepStack(stacks=stacks, base="zero", tap=tap)
            case "string_woglobal" | "string_withglobal":
                return SequenceConcat(sampler, tap, base=self.family == "string_withglobal", fill_to=count)
            case "deepstack_v":
                return DeepStackV(num_stacks=count, start=start, sampler=sampler, tap=tap)
            case "deepstack_l_hd":
                return DeepStackHD(up=isqrt(count), start=start, interval=interval, sampler=sampler, tap=tap)
        raise AssertionError(self.family)

    def encoder(self, kind: type[HFVisionEncoder] = NormalisedPixels) -> HFVisionEncoder:
        config = self.config
        return kind(
            config={
                "model_type": "clip_vision_model",
                "image_size": config["image_size"],
                "patch_size": config["patch_size"],
                "hidden_size": config["vision_hidden_size"],
                "intermediate_size": config["vision_intermediate_size"],
                "num_hidden_layers": config["vision_layers"],
                "num_attention_heads": config["vision_heads"],
                "hidden_act": config["vision_activation"],
                "layer_norm_eps": config["vision_layer_norm_eps"],
            },
            extra_layers=config.get("vision_post_encoder_layers", 0),
            dtype=config["dtype"],
        )

    def language_model(self) -> HFCausalLM:
        config = self.config
        return HFCausalLM(
            config={
                "model_type": DECODERS[config["architecture"]],
                "hidden_size": config["llm_hidden_size"],
                "intermediate_size": config["llm_intermediate_size"],
                "num_hidden_layers": config["llm_layers"],
                "num_attention_heads": config["llm_heads"],
                "num_key_value_heads": config["llm_kv_heads"],
                "vocab_size": config["vocab_size"],
                "rms_norm_eps": config["rms_norm_eps"],
                "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
                "max_position_embeddings": config["max_position_embeddings"],
                "tie_word_embeddings": config["tie_word_embeddings"],
                "hidden_act": config["hidden_activation"],
                "pad_token_id": config["pad_token_id"],
                "eos_token_id": None,
            },
            dtype=config["dtype"],
        )

    def projector(self, in_widths: list[int], out_width: int) -> Projector:
        name = self.config["projector"]
        layers = 1 if name == "linear" else int(name[3])
        if self.family == "baseline_scaledown":
            return AveragePoolProjector(in_widths, out_width, layers=layers)
        return MLPProjector(in_widths, out_width, layers=layers)

    def compose(self, scheduler: DeepStack | None = None, encoder: type[HFVisionEncoder] = NormalisedPixels) -> VLM:
        """The four parts with random weights."""
        return VLM(self.encoder(encoder), self.projector, scheduler or self.scheduler(), self.language_model())

    def load(
        self,
        folder: Path,
        scheduler: DeepStack | None = None,
        encoder: type[HFVisionEncoder] = NormalisedPixels,
    ) -> VLM:
        """The four parts with the authors' weights, read strictly."""
        vlm = self.compose(scheduler, encoder).to(getattr(torch, self.config["dtype"]))
        load_checkpoint(vlm, self.weights(folder))
        return vlm.eval()

    # --- its batches

    def items(self) -> list[Item]:
        """One training row per sample."""
        labels = [[]] * len(self.ids)
        if "labels" in self.inputs:
            real = self.inputs["attention_mask"].bool()
            labels = [row[mask].tolist() for row, mask in zip(self.inputs["labels"], real, strict=True)]
        side = self.config["image_size"]
        fine = isqrt(self.config["num_crops"]) if self.family == "deepstack_l_hd" else 0
        items = []
        for i, (ids, grid, row) in enumerate(zip(self.ids, self.grids, labels, strict=True)):
            count = (1 + grid[0] * grid[1]) * (1 + fine**2)  # of a file with crops the baseline reads the base view
            pixels = self.inputs[f"pixel_values.{i}"][:count]
            items.append(Item(f"sample {i}", ids, row or None, [pixels], [grid], [(side, side)]))
        return items

    def collate(self, vlm: VLM, **options: Any) -> Collate:
        options = {"max_length": 10**6} | options
        return Collate(
            vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector),
            self.config["pad_token_id"],
            fine=vlm.stacking.fine,
            **options,
        )

    def batch(self, vlm: VLM) -> Batch:
        """All samples, right-padded, made by the product's own collate."""
        return self.collate(vlm)(self.items())

    def questions(self, vlm: VLM, rows: list[int]) -> Batch:
        """Prompts to generate from, left-padded."""
        items = [self.items()[row] for row in rows]
        ask = Question("1", "", ())
        return self.collate(vlm)([Item(i.key, i.ids, None, i.pixels, i.grids, i.sizes, ask) for i in items])

    def views(self) -> Views:
        items = self.items()
        fine = isqrt(self.config["num_crops"]) if self.family == "deepstack_l_hd" else 0
        return Views(torch.cat([pixels for item in items for pixels in item.pixels]), self.grids, fine)


def found() -> list[Case]:
    return [Case(ROOT, path.parent.name) for path in sorted(ROOT.glob("*/config.json"))]


def kind_of(case: Case) -> str:
    """Its kind; for a case that is not understood the reason, which ``test_cases.py`` reports."""
    try:
        return case.kind
    except (ValueError, KeyError) as error:
        return f"unknown: {error!r}"


HELD = {
    "features": r"vision_features",
    "tokens": r"base_tokens|stack_groups",
    "global": r"global_tokens",
    "stream": r"hidden_states\.",
    "encoder_stream": r"vision_hidden_states\.",
}
"""What some cases hold of the stages between pixels and logits, by the names of their outputs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``logits_case`` runs over all cases of kind ``logits``, and so on; ``features_case`` over those that also hold
    features; ``any_case`` over every one.
    """
    for name in metafunc.fixturenames:
        if not name.endswith("_case"):
            continue
        kind = name.removesuffix("_case")
        cases = found()
        if kind in HELD:
            cases = [case for case in cases if kind_of(case) in ("logits", "truncated") and case.holds(HELD[kind])]
        elif kind != "any":
            cases = [case for case in cases if kind_of(case) == kind]
        metafunc.parametrize(name, cases, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    return found()


@pytest.fixture(scope="session")
def committed() -> bool:
    """Whether this is the folder of the repository."""
    return ROOT.resolve() == COMMITTED.resolve()


@pytest.fixture
def close():
    """``close(ours, theirs)``: equal to 2e-4, where the authors' code differs from itself by 5e-5."""

    def check(ours: Tensor, theirs: Tensor, atol: float = 2e-4) -> None:
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.detach(), theirs.to(ours.dtype), atol=atol, rtol=0)

    return check
