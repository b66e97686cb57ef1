"""Videos, the whole way: a tiny Qwen3-VL is imported, trained by ``dslight fit`` on shards whose records hold pictures
and videos (whole ones, and frame by frame), validated on questions about videos, and asked.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dslight
from benchmarks import parity
from data_prep.inspect import main as inspect
from dslight.cli import main
from dslight.data.shards import ShardWriter
from dslight.recipe.compose import to_yaml
from dslight.run.release import import_release

pytest.importorskip("av", reason="PyAV writes and reads the videos; pip install 'dslight[video]'")

VIDEO = {"fps": 4, "least": 2, "most": 8, "min_pixels": 256, "max_pixels": 4000}


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def write(root: Path, clip: bytes, asks: bool) -> None:
    """Records of a picture and a video, of a video alone, of frames one by one, and of text."""
    rng = np.random.default_rng(3)
    film = {"name": "a.mp4", "width": 128, "height": 16, "seconds": 0.8}
    frames = [png(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)) for _ in range(3)]
    still, told = {"name": "b"}, [{"name": "f", "video": 0, "time": 0.5 * i} for i in range(3)]
    held = [
        ([frames[0], clip], [still, film], "<image> then <image>"), ([clip], [film], "<image>\n"),
        ([*frames], told, "<image><image><image>"), ([], [], ""),
    ]  # fmt: skip
    with ShardWriter(root) as writer:
        for i, (images, info, text) in enumerate(held[: 3 if asks else 4] * 2):
            turns = [{"from": "human", "value": f"{text}What?"}, {"from": "gpt", "value": "yes"}]
            asked = [{"question_id": f"q{i}{j}", "question": "What?", "answers": ["yes"]} for j in range(2)]
            about = {"questions": asked} if asks else {"conversations": turns}
            writer.write(f"r{i}", images, {**about, "image_info": info})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    from clips import write_clip

    root = tmp_path_factory.mktemp("videos")
    clip = write_clip(root / "a.mp4", list(range(0, 800, 100)), 800)
    write(root / "train", clip.read_bytes(), asks=False)
    write(root / "val", clip.read_bytes(), asks=True)
    parity.checkpoint(parity.CASES["qwen3_vl"], root / "released")
    import_release(str(root / "released"), root / "imported")
    return root


def recipe(root: Path, **data: object) -> dict[str, object]:
    return {
        "bases": [str(root / "imported" / "dslight.yaml")],
        "data": {
            "train": [str(root / "train")], "val": {"clips": {"root": str(root / "val"), "benchmark": "exact"}},
            "image_marks": ["<start>", "<end>"], "views": {"NativeViews": {"min_pixels": 64, "max_pixels": 2000}},
            "video": VIDEO, "global_batch_size": 4, "val_batch_size": 4, **data,
        },
        "stage": {"train": {"projector": {"lr": 1e-3}}},
        "trainer": {"accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False},
    }  # fmt: skip


PACKED = {"order": {"pack": True}, "max_length": 900, "video": {**VIDEO, "stamps": False}}


@pytest.mark.parametrize("data", [{}, PACKED], ids=["stamps", "packed"])
def test_a_run_trains_and_validates_on_videos_beside_pictures(data, root, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe(root, **data)))
    assert main(["fit", str(file), f"run_dir={tmp_path / 'run'}"]) == 0
    assert "accuracy" in (tmp_path / "run" / "result.json").read_text()
    model = dslight.load(tmp_path / "run", device="cpu")
    assert [model.processor.frames.depth, model.processor.frames.fps] == [2, 4]
    film, still = root / "a.mp4", Image.new("RGB", (40, 24))
    asked = (["a", "b <video> <image>", "c"], [None, still, None], [film, film, None])
    batch = model.processor.ask(*asked)
    assert batch.views.pixels.shape[1:] == (2, 3, 8, 8)
    assert len(batch.views) == 2 * 2 + 1  # 0.8 s at 4 frames a second: 3 frames
    together, alone = model.answer(*asked, max_new_tokens=4), model.answer("a", videos=film, max_new_tokens=4)
    assert together[0] == alone
    with torch.no_grad():
        seen, again = model(batch), model(model.processor.ask(["a"], None, [film]))
    row = seen[0][batch.attention_mask[0].bool()]
    torch.testing.assert_close(row, again[0], rtol=0, atol=1e-4)


def test_a_video_at_the_command_line_is_seen_as_the_recipe_says(root, tmp_path, capsys, monkeypatch):
    seen, answer = [], dslight.VLM.answer_batch

    def spied(self, batch, **options):
        seen.append(batch)
        return answer(self, batch, **options)

    monkeypatch.setattr(dslight.VLM, "answer_batch", spied)
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml({**recipe(root), "run_dir": str(tmp_path)}))
    ask = ["predict", str(file), "--ckpt", str(root / "imported"), "--video", str(root / "a.mp4"), "--question", "a"]
    assert main([*ask, "--max-new-tokens", "4"]) == 0
    assert main([*ask, "--max-new-tokens", "4", "--frames", "3", "--tile", "none"]) == 0
    assert [(batch.views.pixels.ndim, len(batch.views)) for batch in seen] == [(5, 2), (4, 3)]
    inspect(["--recipe", str(file), str(root / "train"), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "a.mp4" not in page
    assert page.count("supervised") >= 8
    assert 'class="problem"' not in page
    capsys.readouterr()
    assert main(["plan", str(file), "--no-cost", "--sizes", str(root / "train"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sizes"]["images"] == 2 * (1 + 2 + 2 + 2)
