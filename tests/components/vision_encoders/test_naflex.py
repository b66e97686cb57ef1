"""SigLIP 2 NaFlex on packed views against transformers' own padded batch."""

import pytest
import torch
import transformers
from torch import Tensor

from dslight.components import NaFlexEncoder
from dslight.testing import VisionEncoderContract
from dslight.types import Grid

CONFIG = {
    "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 2, "patch_size": 8, "num_patches": 16,
}  # fmt: skip
PIECES: list[Grid] = [(2, 3), (1, 1), (3, 2)]
HALF = (0.5, 0.5, 0.5)


def pixels(side: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    count = sum(rows * cols for rows, cols in PIECES)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def their_features(model, merge: int) -> list[Tensor]:
    """Of each image ``[rows, columns, C]``, from a batch that is padded to the longest."""
    side, images = 8 * merge, []
    for (rows, cols), own in zip(PIECES, pixels(side).split([r * c for r, c in PIECES]), strict=True):
        image = own.view(rows, cols, 3, side, side).permute(0, 3, 1, 4, 2).reshape(rows * side, cols * side, 3)
        patches = image.view(rows * merge, 8, cols * merge, 8, 3).transpose(1, 2).reshape(-1, 8 * 8 * 3)
        images.append((patches.float() / 255 - 0.5) / 0.5)
    longest = max(map(len, images))
    padded = torch.stack([torch.nn.functional.pad(image, (0, 0, 0, longest - len(image))) for image in images])
    mask = torch.tensor([[1] * len(image) + [0] * (longest - len(image)) for image in images])
    shapes = torch.tensor([[rows * merge, cols * merge] for rows, cols in PIECES])
    found = model(pixel_values=padded, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state
    return [own[: rows * cols].view(rows, cols, -1) for own, (rows, cols) in zip(found, shapes.tolist(), strict=True)]


@pytest.mark.parametrize("merge", [1, 2])
@torch.no_grad()
def test_packed_views_have_the_features_of_the_padded_batch(merge, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**CONFIG)
    theirs = transformers.AutoModel.from_config(config).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    theirs.save_pretrained(tmp_path)
    ours = NaFlexEncoder(str(tmp_path), merge=merge, mean=HALF, std=HALF).eval()
    (found,) = ours(pixels(8 * merge), pieces=PIECES)
    expected = their_features(theirs, merge)
    for own, whole, (rows, cols) in zip(found.split([r * c for r, c in PIECES]), expected, PIECES, strict=True):
        mine = own.view(rows, cols, merge, merge, -1).transpose(1, 2).reshape(rows * merge, cols * merge, -1)
        torch.testing.assert_close(mine, whole, atol=2e-5, rtol=1e-4)
    assert expected[0].std() > 0.1


def test_a_model_of_one_size_is_refused():
    with pytest.raises(ValueError, match=r"config\.model_type: 'siglip_vision_model'"):
        NaFlexEncoder(config={"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4})


class TestNaFlex(VisionEncoderContract):
    def make(self) -> NaFlexEncoder:
        return NaFlexEncoder(config=CONFIG, merge=2)
