"""Digests of everything a run was made from."""

from dataclasses import dataclass

from talkinghead_lab.foundation.digests import combined, known_sha256
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.weights.digests import lora_digests, weight_digests


def media_digests(params: GenerationParams) -> dict[str, str]:
    """Digest of the picture and of each recording, by the request's name for it."""
    names = ("image_path", "audio_path", "second_audio_path")
    named = {name: getattr(params, name) for name in names}
    return {name: known_sha256(local_file(value)) for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class InputDigests:
    """Digests of all that a request's video is made from: the weights, the LoRAs, the media."""

    weights: dict[str, str]
    loras: list[dict[str, object]]
    media: dict[str, str]

    @classmethod
    def of(cls, params: GenerationParams) -> "InputDigests":
        """Digests of what a request names, as it is on disk now."""
        return cls(weight_digests(params), lora_digests(params), media_digests(params))

    @property
    def digest(self) -> str:
        return combined([self.weights, self.loras, self.media])
