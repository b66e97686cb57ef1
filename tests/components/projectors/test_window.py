"""The window Q-Former against Granite 4 Vision's in transformers."""

import pytest
import torch
from torch import nn

from dslight.components import WindowQFormerProjector

granite = pytest.importorskip(
    "transformers.models.granite4_vision.modeling_granite4_vision",
    reason="this version of transformers has no Granite 4 Vision",
)
D, SIDE = 10, 8
CORNERS = ["top_left", "top_right", "bottom_left", "bottom_right"]


def theirs(width: int, rate: str, corner: int | None = None, **qformer) -> nn.Module:
    """Granite's projector for maps of 8 x 8, with weights that are far from their beginning."""
    from transformers import Granite4VisionConfig

    config = Granite4VisionConfig(
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": width, "image_size": SIDE * 2, "patch_size": 2,
        },
        text_config={"hidden_size": D, "num_attention_heads": 1},
        qformer_config={
            "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 24,
            "cross_attention_frequency": 1, "use_qformer_text_input": False,
            # newer versions of transformers take these from vision_config
            "hidden_size": width, "encoder_hidden_size": width, "num_attention_heads": width // 64, **qformer,
        },
        downsample_rate=rate,
    )  # fmt: skip
    module = granite.Granite4VisionWindowQFormerDownsampler(config, corner)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize(("queries", "window"), [(2, 4), (4, 8), (1, 4), (3, 4), (1, 2)])
@pytest.mark.parametrize("width", [64, 128])
def test_area_queries_are_granites(queries, window, width):
    original = theirs(width, f"{queries}/{window}")
    projector = WindowQFormerProjector([width] * 2, D, window=window, queries=queries, hidden=24).eval()
    projector.net.load_state_dict(original.state_dict())
    maps = torch.randn(2, 3, SIDE, SIDE, width)
    expected = torch.stack([original(level.flatten(1, 2)) for level in maps])
    torch.testing.assert_close(projector(list(maps)).flatten(2, 3), expected, atol=1e-5, rtol=1e-5)


def test_levels_and_corners_together_are_granites_eight_projectors():
    sources = ["area"] * 4 + CORNERS
    originals = [theirs(64, "2/4", corner) for corner in (None, None, None, None, 0, 1, 2, 3)]
    projector = WindowQFormerProjector(
        [64] * 8, D, window=4, queries=2, queries_from=sources, hidden=24, per_level=True
    ).eval()
    for net, original in zip(projector.nets, originals, strict=True):
        net.load_state_dict(original.state_dict())
    maps = torch.randn(8, 2, SIDE, SIDE, 64)
    expected = [original(level.flatten(1, 2)) for original, level in zip(originals, maps, strict=True)]
    torch.testing.assert_close(projector(list(maps)).flatten(2, 3), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_deeper_q_formers_are_granites():
    original = theirs(64, "2/4", num_hidden_layers=3)
    projector = WindowQFormerProjector([64], D, window=4, queries=2, depth=3, hidden=24).eval()
    projector.net.load_state_dict(original.state_dict())
    assert len(projector.shard_units) == 3
    maps = torch.randn(2, SIDE, SIDE, 64)
    torch.testing.assert_close(projector([maps])[0].flatten(1, 2), original(maps.flatten(1, 2)), atol=1e-5, rtol=1e-5)


def test_windows_of_an_oblong_map_are_those_of_its_squares():
    projector = WindowQFormerProjector([64], D, window=4, queries=2, hidden=24).eval()
    left, right = torch.randn(2, 1, SIDE, SIDE, 64)
    both = projector([torch.cat([left, right], 2)])
    torch.testing.assert_close(both, torch.cat([projector([left]), projector([right])], 3), atol=1e-5, rtol=1e-5)


def test_dropout_is_at_work_in_training_only():
    projector, maps = WindowQFormerProjector([64], D, window=4, queries=2, hidden=24), torch.randn(1, SIDE, SIDE, 64)
    assert (projector.train()([maps]) - projector([maps])).abs().max() > 1e-3
    torch.testing.assert_close(projector.eval()([maps]), projector([maps]))
