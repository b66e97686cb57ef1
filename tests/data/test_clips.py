"""Clips of videos for encoders of temporal patches, against transformers' processors: pixels, grids, text; and records
that hold videos whole or frame by frame.
"""

import io
import json
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import parity
from dslight.data.caches.lengths import Measure
from dslight.data.conversation import Markers, template
from dslight.data.given import Video, ordered, watched
from dslight.data.native import NativeViews
from dslight.data.rows import RowMaker
from dslight.data.sample import BadSample, parse_sample
from dslight.data.views.frames import AS_USUAL, Frames
from dslight.errors import UserError
from dslight.layout import SlotLayout
from dslight.processor import Processor

transformers = pytest.importorskip("transformers")

SIDE = (8, 8)
"""Of a piece: 2 x 2 patches of 4 pixels."""
SHAPES = [(5, 40, 64), (4, 60, 30), (2, 7, 40), (1, 30, 30), (3, 130, 33), (12, 90, 160)]
CLIPS = [np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8) for i, shape in enumerate(SHAPES)]


def patches(views: torch.Tensor) -> torch.Tensor:
    """Pieces, uint8 [V, F, 3, 8, 8], as a tower takes them, [V * 4, 3 * F * 4 * 4]."""
    parts = views.unflatten(-1, (2, 4)).unflatten(-3, (2, 4))
    return parts.permute(0, 3, 5, 2, 1, 4, 6).flatten(0, 2).flatten(1)


@pytest.mark.parametrize(
    ("name", "budget", "least", "most"),
    [
        ("Qwen3VLVideoProcessor", "video", 256, 6000),
        ("Qwen3VLVideoProcessor", "video", 20000, 80000),
        ("Qwen2VLVideoProcessor", "frame", 256, 1500),
        ("Qwen2VLVideoProcessor", "frame", 5000, 9000),
    ],
)
def test_pixels_and_grids_are_those_of_qwens_video_processors(name, budget, least, most):
    """Of frames that are given, odd numbers of them, clips that it enlarges and that it shrinks."""
    theirs = getattr(transformers, name)(
        patch_size=4, size={"shortest_edge": least, "longest_edge": most}, do_normalize=False, do_rescale=False,
        do_sample_frames=False, cap_pixels_per_frame=False,
    )  # fmt: skip
    asked = Frames(min_pixels=least, max_pixels=most, budget=budget, stamps=False, depth=2)
    for frames in CLIPS:
        if len(frames) == 1 and budget == "video":
            continue  # it refuses these
        made = theirs([torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")
        ((clip,), _) = watched(Video(frames, fps=1.0), asked, np.asarray)
        views, grid, pieces = NativeViews().clip(list(clip.frames), clip, SIDE)
        assert grid == (0, 0)
        assert made["video_grid_thw"].tolist() == [[len(views), pieces[0] * 2, pieces[1] * 2]]
        assert len(views) == clip.patches == -(-len(frames) // 2)
        assert torch.equal(patches(torch.cat(views)), made["pixel_values_videos"])


def processor(frames: Frames, marks: tuple[str, str] = ("<start>", "<end>")) -> Processor:
    rows = RowMaker(template(Markers(), image_marks=marks), parity.tokenizer(), NativeViews(64, 2000), SIDE)
    return Processor(rows, SlotLayout((1, 1), native=True), 4096, frames=frames)


def test_text_is_that_of_qwen3_vls_processor():
    """Stamps, marks and all, of a video beside a picture, one without it, and one of a single temporal patch."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.video_utils import VideoMetadata

    tokenizer = parity.tokenizer()
    for name, token in (
        ("image", "<image>"),
        ("video", "<video>"),
        ("vision_start", "<start>"),
        ("vision_end", "<end>"),
    ):
        setattr(tokenizer, f"{name}_token", token)
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
    size = {"shortest_edge": 64, "longest_edge": 2000}
    theirs = transformers.Qwen3VLProcessor(
        Qwen2VLImageProcessorPil(patch_size=4, size=size), tokenizer,
        transformers.Qwen3VLVideoProcessor(patch_size=4, size=size, cap_pixels_per_frame=False),
    )  # fmt: skip
    asked = Frames(min_pixels=64, max_pixels=2000, around=("<start>", "<end>"), depth=2)
    ours, image = processor(asked), np.full((20, 30, 3), 9, np.uint8)
    for frames, times, text, shown in (
        (CLIPS[0], [0, 1, 2, 3, 4], "<video>\nWhat?", None),
        (CLIPS[1], [0, 7, 14, 22], "See <image> and then <video> here", image),
        (CLIPS[2], [3, 10], "<video>Why <image>?", image),
    ):
        wrapped = text.replace("\n", "")
        for token in ("<image>", "<video>"):
            wrapped = wrapped.replace(token, f"<start>{token}<end>")
        told = VideoMetadata(total_num_frames=50, fps=2.5, frames_indices=list(times))
        images = {} if shown is None else {"images": [Image.fromarray(shown)]}
        made = theirs(
            text=[wrapped], videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], **images,
            videos_kwargs={"video_metadata": [told], "do_sample_frames": False},
        )  # fmt: skip
        batch = ours.ask(text, shown, Video(frames, times=[time / 2.5 for time in times]))
        found = ["<image>" if slot else tokenizer.convert_ids_to_tokens(int(i))
                 for i, slot in zip(batch.input_ids[0], batch.visual_mask[0], strict=True)]  # fmt: skip
        expected = tokenizer.convert_ids_to_tokens(made["input_ids"][0])
        assert "".join(found) == "".join(expected).replace("<video>", "<image>")


def record(asked: str, times: list[float], **info: object) -> dict[str, bytes]:
    """A picture and three frames, stored one by one."""
    members = {}
    for i in range(4):
        out = io.BytesIO()
        Image.fromarray(CLIPS[0][i]).save(out, "PNG")
        members[f"{i}.png"] = out.getvalue()
    said = [{"name": "a"}, *({"video": 0, "time": time, **info} for time in times)]
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "b"}]
    about = {"images": list(members), "image_info": said, "conversations": turns}
    return {**members, "json": json.dumps(about).encode()}


def test_frames_that_are_stored_one_by_one_are_a_clip():
    members = record("<image>\n<image><image><image>\nWhat?", [0.5, 1.5, 2.5])
    still, *clips = parse_sample("k", members, frames=Frames(depth=2)).images
    assert (type(still), [(len(clip.frames), clip.whole, clip.seconds) for clip in clips]) == (
        bytes, [(2, 3, 2.0), (1, 3, 2.0)]
    )  # fmt: skip
    sample = parse_sample("k", members, frames=Frames(depth=2, around=("(", ")")))
    assert sample.turns[0].text == "<image>\n(<1.0 seconds><image><2.5 seconds><image>)What?"
    (_, clip) = parse_sample("k", members, frames=Frames(depth=2, count=2, stamps=False)).images
    assert [clip.frames, clip.seconds] == [(members["1.png"], members["3.png"]), 3.0]
    for frames in (Frames(), Frames(depth=1)):  # pictures, to an encoder without temporal patches
        assert parse_sample("k", members, frames=frames).images == tuple(members[f"{i}.png"] for i in range(4))
    with pytest.raises(BadSample, match="k: its json is not a record"):
        parse_sample("k", record("<image><image><image><image>", [0.5, 1, 2], time=None), frames=Frames(depth=2))


@pytest.mark.parametrize("frames", [Frames(depth=2, around=("(", ")")), Frames(depth=2, stamps=False), Frames()])
def test_what_is_counted_of_a_clip_is_what_is_read(frames):
    ours = processor(frames)
    rows = ours.rows
    sample = parse_sample("k", record("<image> <image><image><image>?", [0.5, 1.5, 2.5]), frames=frames)
    batch = ours.collate([rows.train(sample)])
    measure = Measure(rows.template, "markers", rows.tokenizer, rows.views, SIDE, ours.slots, frames=frames)
    assert measure._count(sample) == batch.input_ids.shape[1]
    assert batch.views is not None
    assert batch.views.pixels.ndim == (5 if frames.clips else 4)
    assert batch.views.clips == ([(1, 0.0), (2, 2.0)] if frames.clips and not frames.stamps else [])
    assert int(batch.visual_mask.sum()) == sum(rows * columns for rows, columns in batch.views.pieces)


def test_what_is_given_as_a_video_is_one_or_is_refused(tmp_path):
    ours, plain = processor(Frames(depth=2)), processor(Frames())
    several = ours.ask(["a", "b"], None, [CLIPS[0], [CLIPS[1], list(CLIPS[2])]])
    assert len(several.views) == 3 + 2 + 1
    assert len(plain.ask("a", None, CLIPS[0]).views) == 5  # pictures
    for video, said in (
        (tmp_path / "gone.mp4", "there is no file"),
        (CLIPS[0][0], "an array of shape"),
        (3, "a int is no video"),
        ([CLIPS[0][0], CLIPS[1][0]], "several sizes"),
    ):
        with pytest.raises(ValueError, match=said):
            ours.ask("a", None, video)
    with pytest.raises(ValueError, match=r"the question has 2 <video>, and there are 1"):
        ours.ask("<video><video>", None, CLIPS[0])
    with pytest.raises(ValueError, match="videos: 1 entries for 2 questions"):
        ours.ask(["a", "b"], None, [CLIPS[0]])
    for wrong in ({"fps": 0.0}, {"times": [1.0]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Video(CLIPS[0], **wrong)
    assert ordered("x", [1], [([2, 3], "m")]) == ("x", [1, 2, 3], ("<image>", "m"))


def test_settings_of_clips_that_mean_nothing_are_refused():
    for wrong, said in (
        ({"min_pixels": 5}, "data.video.min_pixels: 5, alone"),
        ({"min_pixels": 9, "max_pixels": 5}, "data.video.min_pixels: 9; from 1 to max_pixels, 5"),
        ({"least": 9, "most": 8}, "data.video.least: 9; at most data.video.most"),
        ({"depth": -1}, "data.video.depth: -1"),
        ({"around": ("<image>", "")}, "data.video.around"),
    ):
        with pytest.raises(ValueError, match=said):
            Frames(**wrong)
    with pytest.raises(ValueError, match=r"data.video.depth: 3; the patches of this encoder are 2 frames deep"):
        Frames(depth=3).seen_by(2)
    assert Frames().seen_by(1) == AS_USUAL  # so that what was kept for it, and what it writes, stay as they were
    assert Frames(fps=1.0, least=4).of({"seconds": 1.0}) == 4
    known = replace(processor(Frames(depth=2)).rows, known=cast(Any, "features"))
    clips = watched(CLIPS[0], Frames(depth=2), np.asarray)[0]
    with pytest.raises(UserError, match=r"data\.keep_features: features of videos"):
        known.seen(clips)
