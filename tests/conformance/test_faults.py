"""The runner sees what implementations get wrong: each of these faults, put into dslight's own path, turns the case
that is about it red. The faults are those that users reported of engines.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dslight.conformance import Batch, families, run
from dslight.conformance.cases import CASES
from dslight.conformance.own import DslightModel, DslightSession, decoder
from dslight.places import TokenGrid

FAMILIES = {family.name: family for family in families()}
QUICK = [
    "prefill", "chunks", "cached decoding", "left padding", "interleaved", "shared prefix", "several images",
    "image and video", "text only", "column 0",
]  # fmt: skip
"""Asked of every fault, beside the cases that it has to turn red."""


class Model(DslightModel):
    session: Any = DslightSession

    def open(self, batch, after=None):
        return self.session(self, batch, after)


def only_base(visual):
    """The same without its stacks' values."""
    slots = visual.slots.clone()
    slots[1:] = 0
    return replace(visual, slots=slots)


class LaterChunksWithoutStacks(Model):
    class session(DslightSession):  # noqa: N801
        def feed(self, count):
            if self.done and count > 1:
                self.visual = only_base(self.visual)
            return super().feed(count)


class AddedAtEveryDecodeStep(Model):
    """The last visual token's stacks, at the column of the step."""

    class session(DslightSession):  # noqa: N801
        def feed(self, count):
            if self.done < self.batch.prompt or not request_has_images(self.batch):
                return super().feed(count)
            ids, _, mask = self.model.rows(self.batch)
            sizes = [request.slots.shape[1] for request in self.batch.requests]
            base = self.model.lm.embedding(ids[:, self.done])
            parts, grids, given = [], [], list(self.visual.grids)
            for row, part in enumerate(self.visual.slots.split(sizes, dim=1)):
                step = torch.cat([base[None, row], part[1:, -1]])
                parts.append(torch.cat([part, step[:, None]], dim=1))
                grids += [*given[: len(self.batch.requests[row].pixels)], TokenGrid(1, 1, 1)]
                given = given[len(self.batch.requests[row].pixels) :]
            mask = mask.clone()
            mask[:, self.done] = True
            kept, kept_rows = self.visual, self.model.rows
            self.visual = replace(kept, slots=torch.cat(parts, dim=1), grids=tuple(grids))
            self.model.rows = lambda batch: (*kept_rows(batch)[:2], mask)
            try:
                return super().feed(count)
            finally:
                self.visual, self.model.rows = kept, kept_rows


class StacksOnTheWrongImage(Model):
    def tokens(self, batch):
        visual = super().tokens(batch)
        found = []
        for request in batch.requests:
            sizes = [sum(grid.tokens for grid in self.grids(one)) for one in request.pixels]
            start = sum(len(part) for part in found)
            parts = list(torch.arange(start, start + sum(sizes)).split(sizes)) if sizes else []
            found += parts[::-1]
        order = torch.cat(found) if found else torch.arange(0)
        slots = torch.cat([visual.slots[:1], visual.slots[1:, order]])
        return replace(visual, slots=slots)


class ShiftedByOneAtColumn0(Model):
    def tokens(self, batch):
        visual = super().tokens(batch)
        if not batch.visual[:, :1].any():
            return visual
        return replace(visual, slots=torch.cat([visual.slots[:1], visual.slots[1:].roll(1, dims=1)]))


class StacksWithoutRegardToPadding(Model):
    def tokens(self, batch):
        visual, shifts = super().tokens(batch), []
        for row, request in enumerate(batch.requests):
            shifts += [batch.real(row).start] * request.slots.shape[1]
        slots = visual.slots.clone()
        for place, shift in enumerate(shifts):
            if shift and request_has_images(batch):
                slots[1:, place] = visual.slots[1:, place - shift]
        return replace(visual, slots=slots)


def request_has_images(batch):
    return all(len(request.pixels) for request in batch.requests)


class TextRowGetsVisual(Model):
    class session(DslightSession):  # noqa: N801
        def feed(self, count):
            logits = super().feed(count)
            texts = [row for row, request in enumerate(self.batch.requests) if not request.pixels]
            if len(self.batch.requests) > len(texts) > 0:
                logits[texts] += self.visual.stacks[0, 0].sum().item()
            return logits


class StateOnTheModel(Model):
    latest: Any = None

    class session(DslightSession):  # noqa: N801
        def __init__(self, model, batch, after):
            super().__init__(model, batch, after)
            model.latest = self.visual

        def feed(self, count):
            latest = self.model.latest
            if latest.slots.shape[1] != self.visual.slots.shape[1]:
                latest = only_base(self.visual)  # what was left there does not fit, and is passed over
            self.visual, kept = replace(latest, grids=self.visual.grids), self.visual
            logits = super().feed(count)
            self.visual = kept
            return logits


class BeamsOfTheFirstRowAlone(Model):
    def generate(self, batch, new, beams=1, chunk=None):
        if beams == 1:
            return super().generate(batch, new)
        self.tokens, kept = lambda batch: only_base(kept(batch)), self.tokens
        try:
            return super().generate(batch, new, beams)
        finally:
            self.tokens = kept


class SuffixCountsFeaturesFromItsBeginning(Model):
    class session(DslightSession):  # noqa: N801
        def __init__(self, model, batch, after):
            super().__init__(model, batch, after)
            seen = int(batch.visual[:, : self.done].sum())
            if after is not None and seen < self.visual.slots.shape[1]:
                stacks = self.visual.slots[1:].roll(seen, dims=1)
                self.visual = replace(self.visual, slots=torch.cat([self.visual.slots[:1], stacks]))


class RoundedAway(Model):
    def tokens(self, batch):
        visual = super().tokens(batch)
        return only_base(visual) if next(self.lm.parameters()).dtype == torch.bfloat16 else visual


class RecomputedWithoutStacks(Model):
    def gradients(self, request, checkpointing):
        loss, gradient = super().gradients(request, checkpointing)
        if checkpointing:
            gradient[1:] *= 0.5
        return loss, gradient


class DocumentsThatSeeEachOther(Model):
    def packed(self, requests):
        lengths = [len(request.ids) for request in requests]
        ids, mask = (
            torch.from_numpy(np.concatenate([getattr(request, name) for request in requests]))[None]
            for name in ("ids", "visual")
        )
        visual = self.tokens(Batch(tuple(requests)))
        with torch.no_grad():
            logits = self.lm(ids, torch.ones_like(ids), mask, visual, torch.ones_like(ids))
        return [one.numpy() for one in logits[0].split(lengths)]


class VideoWithoutStacks(Model):
    def tokens(self, batch):
        visual, start = super().tokens(batch), 0
        slots = visual.slots.clone()
        for request in batch.requests:
            for one in request.pixels:
                size = sum(grid.tokens for grid in self.grids(one))
                if "video_grid_thw" in one:
                    slots[1:, start : start + size] = 0
                start += size
        return replace(visual, slots=slots)


class OneLayerLate(Model):
    def tokens(self, batch):
        visual = super().tokens(batch)
        last = self.lm.depth - 1
        return replace(visual, sites=tuple(min(site + 1, last) for site in visual.sites))


class BaseIsThePlaceholdersEmbedding(Model):
    def tokens(self, batch):
        visual = super().tokens(batch)
        slots = visual.slots.clone()
        slots[0] = self.lm.embedding.weight[self.family.facts["placeholders"][0]]
        return replace(visual, slots=slots)


class LevelsInAnotherOrder(Model):
    def see(self, request):
        return request.slots[[0, 2, 1, *range(3, len(request.slots))]]


class GatesIgnored(Model):
    def tokens(self, batch):
        return replace(super().tokens(batch), operation=None)


class TheLaterStackOfALayerWins(Model):
    def tokens(self, batch):
        visual = super().tokens(batch)
        slots = visual.slots.clone()
        for index, site in enumerate(visual.sites):
            if site in visual.sites[index + 1 :]:
                slots[index + 1] = 0
        return replace(visual, slots=slots)


class PiecesWithoutStacks(Model):
    def generate(self, batch, new, beams=1, chunk=None):
        if chunk is None:
            return super().generate(batch, new, beams)
        self.tokens, kept = lambda batch: only_base(kept(batch)), self.tokens
        try:
            return super().generate(batch, new, beams, chunk)
        finally:
            self.tokens = kept


FAULTS = [
    (LaterChunksWithoutStacks, "qwen3_vl", {"chunks", "shared prefix", "column 0"}),
    (AddedAtEveryDecodeStep, "qwen3_vl", {"cached decoding", "left padding", "interleaved", "column 0"}),
    (StacksOnTheWrongImage, "qwen3_vl", {"several images", "image and video"}),
    (ShiftedByOneAtColumn0, "granite_docling", {"column 0", "interleaved"}),
    (StacksWithoutRegardToPadding, "qwen3_vl", {"left padding"}),
    (TextRowGetsVisual, "qwen3_vl", {"text only"}),
    (StateOnTheModel, "qwen3_vl", {"interleaved"}),
    (BeamsOfTheFirstRowAlone, "qwen3_vl", {"beams", "left padding with beams"}),
    (SuffixCountsFeaturesFromItsBeginning, "qwen3_vl", {"shared prefix"}),
    (RoundedAway, "qwen3_vl", {"bfloat16"}),
    (RecomputedWithoutStacks, "qwen3_vl", {"checkpointing"}),
    (DocumentsThatSeeEachOther, "granite_docling", {"packing"}),
    (VideoWithoutStacks, "qwen3_vl", {"image and video"}),
    (LevelsInAnotherOrder, "qwen3_vl", {"vision", "image and video"}),
    (GatesIgnored, "granite4_vision", {"gates"}),
    (TheLaterStackOfALayerWins, "granite4_vision", {"one layer twice"}),
    (PiecesWithoutStacks, "qwen3_vl", {"greedy in pieces"}),
]
EVERYWHERE = [(OneLayerLate, "qwen3_vl"), (BaseIsThePlaceholdersEmbedding, "granite4_vision")]


class Adapter:
    """Of a model that is loaded once for all faults."""

    name = "faulty"
    loaded: ClassVar[dict[tuple[str, str], Any]] = {}

    def __init__(self, kind):
        self.kind = kind

    def load(self, family, dtype="float32"):
        if (key := (family.name, dtype)) not in self.loaded:
            self.loaded[key] = decoder(family, dtype)
        return self.kind(family, self.loaded[key])


def red(kind, name, cases):
    report = run(Adapter(kind), cases, [FAMILIES[name]])
    assert not [one.said for one in report.outcomes if one.verdict == "raised"]
    return {one.case for one in report.failed}


@pytest.mark.parametrize(("kind", "name", "cases"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_turns_its_case_red_and_no_other(kind, name, cases):
    assert red(kind, name, {*QUICK, *cases}) == cases


@pytest.mark.parametrize(("kind", "name"), EVERYWHERE, ids=lambda value: getattr(value, "__name__", None))
def test_a_fault_of_every_pass_is_seen_in_the_plainest(kind, name):
    assert "prefill" in red(kind, name, QUICK)


def test_every_case_has_a_fault_or_an_answer_that_is_compared_with_another():
    tried = {case for *_, cases in FAULTS for case in cases}
    plain = {"prefill", "greedy", "gradients", "inputs", "left padding answered"}
    assert tried | plain == set(CASES)
