"""The sets of files that can be downloaded; each is all that generation needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from talkinghead_lab.weights import locating


class Pin(NamedTuple):
    """The revision of a repository.

    Args:
        commit: that is downloaded.
        branch: whose commit is taken if the hub no longer has `commit`.
    """

    commit: str
    branch: str = "main"


@dataclass(frozen=True)
class Part:
    """Files of one repository of the hub.

    Args:
        repository: key of `PINS`.
        patterns: of the files' names; each must match a file.
    """

    repository: str
    patterns: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of the folder that the files are put into."""
        return self.repository.rpartition("/")[2]


WAN, SPEECH, INFINITETALK = locating.RELEASED_REPOSITORIES.values()
KIJAI = "Kijai/WanVideo_comfy"
KIJAI_FP8 = "Kijai/WanVideo_comfy_fp8_scaled"
COMFY = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
GGUF = "city96/Wan2.1-I2V-14B-480P-gguf"
GGUF_TEXT = "city96/umt5-xxl-encoder-gguf"
# Commits that public download scripts name (November 2026): several scripts for each, but one for SPEECH and
# one for GGUF.
PINS: Mapping[str, Pin] = {
    WAN: Pin("6b73f84e66371cdfe870c72acd6826e1d61cf279"),
    # The main branch has the weights only as a pickle. InfiniteTalk's instructions take model.safetensors
    # from this pull request.
    SPEECH: Pin("5f7a6cfdfc5440ec78748f79a9dd66f077c2b463", "refs/pr/1"),
    INFINITETALK: Pin("d59847ebdacf19245bfca3fb23311c0cada8378a"),
    KIJAI: Pin("8260d429d19fd7a72304cad059160b95d843913f"),
    KIJAI_FP8: Pin("033a4e487f60220b3d6e469599a6aebc46e13cee"),
    COMFY: Pin("123acf1cc74bccbb9bfff8ac1ee72edc08c2341d"),
    GGUF: Pin("b4b6b3b3f0f64975fb33b1d5d1a46ca24e065f03"),
    GGUF_TEXT: Pin("b535255bee98c2b0a59ea7c0ae2dcd0c6657b3b7"),
}

TOKENIZER = f"{locating.TOKENIZER}/*"
CLIP = "split_files/clip_vision/clip_vision_h.safetensors"
ADAPTERS_FP16 = (
    "InfiniteTalk/Wan2_1-InfiniTetalk-Single_fp16.safetensors",
    "InfiniteTalk/Wan2_1-InfiniteTalk-Multi_fp16.safetensors",
)
ADAPTERS_FP8 = (
    "InfiniteTalk/Wan2_1-InfiniteTalk-Single_fp8_e4m3fn_scaled_KJ.safetensors",
    "InfiniteTalk/Wan2_1-InfiniteTalk-Multi_fp8_e4m3fn_scaled_KJ.safetensors",
)
# The video autoencoder as released, in float32: repackaged ones are rounded to 16 bits.
EVERY_VARIANT = (
    Part(WAN, ("config.json", f"{locating.VAE}*", TOKENIZER)),
    Part(SPEECH, ("config.json", "preprocessor_config.json", "model.safetensors")),
)

VARIANTS: Mapping[str, tuple[Part, ...]] = {
    "official": (
        Part(WAN, ("models_*", f"{locating.TRANSFORMER}*")),
        Part(INFINITETALK, ("single/infinitetalk.safetensors", "multi/infinitetalk.safetensors")),
        *EVERY_VARIANT,
    ),
    "fp8": (
        Part(KIJAI_FP8, ("I2V/Wan2_1-I2V-14B-480p_fp8_e4m3fn_scaled_KJ.safetensors", *ADAPTERS_FP8)),
        Part(COMFY, ("split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", CLIP)),
        *EVERY_VARIANT,
    ),
    "gguf-q8": (
        Part(GGUF, ("wan2.1-i2v-14b-480p-Q8_0.gguf",)),
        Part(KIJAI, ADAPTERS_FP16),
        Part(GGUF_TEXT, ("umt5-xxl-encoder-Q8_0.gguf",)),
        Part(COMFY, (CLIP,)),
        *EVERY_VARIANT,
    ),
    "gguf-q4": (
        Part(GGUF, ("wan2.1-i2v-14b-480p-Q4_K_M.gguf",)),
        Part(KIJAI_FP8, ADAPTERS_FP8),
        Part(GGUF_TEXT, ("umt5-xxl-encoder-Q4_K_M.gguf",)),
        Part(COMFY, (CLIP,)),
        *EVERY_VARIANT,
    ),
}
