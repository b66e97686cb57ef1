"""What holds for every vision encoder. Each one's own numbers are in ``vision_encoders/``."""

import pytest
import torch

from dslight.components import VisionEncoder


def test_a_misfit_of_features_and_promises_is_named():
    class Odd(VisionEncoder):
        width, grid, image_size, mean, std = 16, (4, 4), (16, 16), (0.5,) * 3, (0.5,) * 3

        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 16)])

        @property
        def layers(self):
            return self.blocks

        def encode(self, pixels, depth):
            return self.blocks[0](pixels.flatten(2).transpose(1, 2))

    message = r"Odd: tap final gave features \(2, 256, 16\), its grid and width promise \(2, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        Odd()(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


class Whole(VisionEncoder):
    """Features without layers."""

    width, grid, image_size, mean, std = 3, (16, 16), (16, 16), (0.5,) * 3, (0.5,) * 3
    tappable = stackable = False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    @property
    def layers(self):
        return ()

    def encode(self, pixels, depth):
        return pixels.flatten(2).transpose(1, 2) * self.scale


def test_an_encoder_without_layers_gives_its_final_features_and_refuses_the_rest():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    (final,) = Whole()(pixels)
    torch.testing.assert_close(final, (pixels / 127.5 - 1).flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="Whole has no layers to read, so no tap -2; `final` is all there is"):
        Whole()(pixels, taps=[-2])
    with pytest.raises(ValueError, match="Whole has no layers to add stacks to"):
        Whole()(pixels, stacks=torch.zeros(1, 2, 256, 3), sites=[0])
