"""Layers of the decoder are numbered stage by stage in diffusers, and in one row in the release."""

import pytest

from talkinghead_lab.models.released_names import rename
from talkinghead_lab.weights.formats.names.autoencoder import diffusers_modules


def names(stages: int, resnets: int) -> list[str]:
    return [f"decoder.up_blocks.{s}.resnets.{r}.conv1.weight" for s in range(stages) for r in range(resnets)]


@pytest.mark.parametrize(
    ("resnets", "name", "released"),
    [
        (3, "decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.upsamples.2.residual.2.weight"),
        (3, "decoder.up_blocks.1.resnets.0.conv_shortcut.bias", "decoder.upsamples.4.shortcut.bias"),
        (3, "decoder.up_blocks.3.resnets.2.norm2.gamma", "decoder.upsamples.14.residual.3.gamma"),
        (3, "decoder.up_blocks.2.upsamplers.0.resample.1.weight", "decoder.upsamples.11.resample.1.weight"),
        (2, "decoder.up_blocks.1.upsamplers.0.time_conv.bias", "decoder.upsamples.5.time_conv.bias"),
        (2, "decoder.up_blocks.3.resnets.1.conv2.weight", "decoder.upsamples.10.residual.6.weight"),
    ],
)
def test_layers_of_the_decoder(resnets, name, released):
    assert rename(name, diffusers_modules(names(4, resnets))) == released


def test_a_number_beyond_every_network_is_not_counted():
    modules = diffusers_modules([f"decoder.up_blocks.{10**12}.resnets.{10**12}.conv1.weight"])
    assert not any("upsamples" in released for released in modules.values())
