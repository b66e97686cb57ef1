"""The kit's files are what the producing program makes, and small."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from dslight.conformance import Batch, families
from dslight.conformance.kit import ROOT, Family
from dslight.conformance.own_transformers import Transformers, TransformersModel
from dslight.conformance.pictures import FRAMES, SIZES, as_patches, picture, pixels
from dslight.conformance.produce import positions_of, produce, weights
from dslight.conformance.tiny import RECIPES

FAMILIES = {family.name: family for family in families()}
SAME = {family.facts["made with"]["transformers"] for family in FAMILIES.values()} == {transformers.__version__}
same_versions = pytest.mark.skipif(not SAME, reason="made with another version of transformers")


def test_there_is_a_family_for_each_recipe_and_all_are_under_two_megabytes():
    assert FAMILIES.keys() == RECIPES.keys()
    assert sum(file.stat().st_size for file in ROOT.rglob("*") if file.is_file()) < 2_000_000


def test_a_checkpoints_folder_holds_nothing_but_the_checkpoint():
    """Engines read every weights file that lies there."""
    for family in FAMILIES.values():
        assert [file.name for file in family.folder.glob("*.safetensors")] == ["model.safetensors"]


def test_every_stack_of_a_request_differs_from_the_others_and_no_answer_is_one_word():
    for family in FAMILIES.values():
        for request in family.requests.values():
            assert len(set(request.answer.tolist())) > 2
            if request.pixels:
                apart = [np.abs(a - b).max() for i, a in enumerate(request.slots) for b in request.slots[:i]]
                assert min(apart) > 0.1, (family.name, request.name)


@same_versions
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_and_numbers_are_those_of_the_familys_own_class(name):
    family = FAMILIES[name]
    made = weights(RECIPES[name], family.facts["seed"])
    read = Transformers().load(family)
    for key, value in made.state_dict().items():
        assert torch.equal(value, read.model.state_dict()[key]), key
    model = TransformersModel(family, made)
    for request in family.requests.values():
        logits = model.whole(Batch((request,)))[0].numpy()
        np.testing.assert_allclose(logits, request.logits, atol=2e-5)
        if request.pixels:
            np.testing.assert_allclose(model.see(request), request.slots, atol=1e-5)
            assert (positions_of(model, request) == request.positions).all()


@same_versions
def test_the_pixels_are_those_of_the_processors():
    from safetensors.numpy import load_file as load

    kept, made = load(ROOT / "pixels.safetensors"), pixels()
    assert kept.keys() == made.keys()
    assert all(np.array_equal(kept[name], made[name]) for name in made)


def test_frames_of_a_video_share_patches_two_by_two():
    """Against transformers' own processor of videos."""
    frames = [picture(f"v{i}", SIZES["b"]) for i in range(FRAMES)]
    processor = transformers.AutoProcessor.from_pretrained(ROOT / "qwen3_vl").video_processor
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    given = processor([video], return_tensors="pt", do_sample_frames=False, do_resize=False)
    patches, grid = as_patches(frames)
    assert given["video_grid_thw"].tolist() == [grid]
    np.testing.assert_allclose(given["pixel_values_videos"].numpy(), patches, atol=1e-6)


def test_words_and_pictures_are_the_requests_ids_and_pixels():
    """What a server makes of a chat, with transformers' own processor."""
    from dslight.conformance.server import ServerModel

    family = FAMILIES["qwen3_vl"]
    processor = transformers.AutoProcessor.from_pretrained(family.folder)
    for name in ("one", "first", "several", "text"):
        request = family.requests[name]
        content = ServerModel(None, "", family).content(request)
        asked = [{"type": "image"} if one["type"] == "image_url" else one for one in content]
        text = processor.apply_chat_template([{"role": "user", "content": asked}])
        images = [torch.from_numpy(picture).permute(2, 0, 1) for picture in request.pictures] or None
        made = processor(text=[text], images=images, return_tensors="pt")
        assert made["input_ids"][0].tolist() == request.prompt.tolist()
        if images:
            expected = np.concatenate([one["pixel_values"] for one in request.pixels])
            np.testing.assert_allclose(made["pixel_values"].numpy(), expected, atol=1e-6)


@same_versions
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_program_makes_the_files_again(tmp_path):
    produce(tmp_path)
    for name, family in FAMILIES.items():
        again = Family(tmp_path / name, json.loads((tmp_path / f"{name}.json").read_text()))
        assert again.facts == family.facts
        ours, theirs = load_file(family.folder / "model.safetensors"), load_file(again.folder / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        for key in family.requests:
            np.testing.assert_allclose(again.requests[key].logits, family.requests[key].logits, atol=2e-5)
