"""Names of the video autoencoder in diffusers (`AutoencoderKLWan`), and the released names of its layers.

Source: diffusers 0.40, `autoencoder_kl_wan.py` and `convert_wan_to_diffusers.py`.
"""

import re
from collections.abc import Collection

RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
RESNET = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.resnets\.(\d{1,3})\.")


def diffusers_modules(names: Collection[str]) -> dict[str, str]:
    """Pattern of a module's name in diffusers → its released name.

    Args:
        names: all names of the file. The release numbers the layers of all decoder stages in one row, so the
            number of residual blocks in a stage decides where the next stage begins.
    """
    modules = {
        "quant_conv": "conv1",
        "post_quant_conv": "conv2",
        r"(encoder|decoder)\.conv_in": r"\1.conv1",
        r"(encoder|decoder)\.norm_out": r"\1.head.0",
        r"(encoder|decoder)\.conv_out": r"\1.head.2",
        r"(encoder|decoder)\.mid_block\.attentions\.0": r"\1.middle.1",
        r"encoder\.down_blocks\.(\d+)\.(resample|time_conv)": r"encoder.downsamples.\1.\2",
    }
    for part, released in RESIDUAL.items():
        modules[rf"encoder\.down_blocks\.(\d+)\.{part}"] = rf"encoder.downsamples.\1.{released}"
        for resnet, number in ((0, 0), (1, 2)):
            modules[rf"(encoder|decoder)\.mid_block\.resnets\.{resnet}\.{part}"] = (
                rf"\1.middle.{number}.{released}"
            )
    found = {(int(match[1]), int(match[2])) for name in names if (match := RESNET.match(name))}
    resnets = 1 + max((resnet for _, resnet in found), default=0)
    for stage, resnet in sorted(found):
        first, block = stage * (resnets + 1), rf"decoder\.up_blocks\.{stage}"
        modules[rf"{block}\.upsamplers\.0"] = f"decoder.upsamples.{first + resnets}"
        for part, released in RESIDUAL.items():
            modules[rf"{block}\.resnets\.{resnet}\.{part}"] = f"decoder.upsamples.{first + resnet}.{released}"
    return modules
