"""Fields of config.json and of the `.json` files beside weights: types and ranges, before a network is built.

Sizes that tensors determine are compared with them later. The bounds lie far above every released model; they
keep a damaged file from asking for terabytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from talkinghead_lab.errors import CheckpointError

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Fields(BaseModel):
    """Fields that a file may set; a default means that the file may leave the field out."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TransformerFields(Fields):
    """config.json of the Wan2.1 folder."""

    num_heads: Heads = 1
    text_len: int = Field(1, ge=1, le=4096)
    eps: Epsilon = 1e-6
    dim: Count = 1
    model_type: str = "i2v"


class AutoencoderFields(Fields):
    """Statistics of the video autoencoder's latents."""

    latent_mean: list[float] = []
    latent_std: list[Positive] = []


class TextEncoderFields(Fields):
    """What the tensors of umT5 do not show."""

    max_distance: int = Field(2, ge=2, le=1_000_000)
    norm_eps: Epsilon = 1e-6


class ImageEncoderFields(Fields):
    """What the tensors of CLIP do not show."""

    num_heads: Heads = 1
    activation: str = ""
    norm_eps: Epsilon = 1e-5
    image_mean: list[float] = Field([], min_length=3, max_length=3)
    image_std: list[Positive] = Field([], min_length=3, max_length=3)


class SpeechEncoderFields(Fields):
    """config.json and preprocessor_config.json of the wav2vec2 folder."""

    num_attention_heads: Heads = 1
    conv_stride: list[Annotated[int, Field(ge=1, le=1000)]] = Field([], max_length=64)
    feat_extract_activation: str = ""
    hidden_act: str = ""
    do_stable_layer_norm: bool = False
    layer_norm_eps: Epsilon = 1e-5
    do_normalize: bool = False
    sampling_rate: Literal[16000] = 16000


def checked(fields: Mapping[str, Any], kind: type[Fields], path: Path) -> Mapping[str, Any]:
    """The fields of a file, if those that matter have the right types and ranges.

    Raises:
        CheckpointError: one has not; the error names it and the file.
    """
    try:
        kind.model_validate(fields)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        name = ".".join(map(str, finding["loc"]))
        raise CheckpointError(
            f"`{name}` of {path} is not valid",
            received=repr(finding["input"])[:80],
            allowed=finding["msg"].removeprefix("Input should be "),
            remedy="Use the file that came with the weights.",
        ) from None
    return fields
