"""Digests of everything a run was made from."""

from dataclasses import dataclass
from typing import Any, Self

from talkinghead_lab.foundation.digests import combined, known_sha256
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.digests import weight_digests

MEDIA_FIELDS = ("image_path", "audio_path", "second_audio_path")


@dataclass(frozen=True)
class InputDigests:
    """Digests of weights, LoRAs and media: a video is a function of these and of the request.

    Args:
        weights: by place in the checkpoint.
        loras: path, scale and digest of each, in the order in which they are merged.
        media: by the request's field.
    """

    weights: dict[str, str]
    loras: list[dict[str, Any]]
    media: dict[str, str]

    @classmethod
    def of(cls, request: GenerationParams, inputs: Inputs | None = None) -> Self:
        """Compute the digests of a request.

        Args:
            request: names the files.
            inputs: media that were read already; None: digests of the files as they are now.

        Raises:
            CheckpointError: a weight file is missing.
            MediaError: a medium is missing.
        """
        loras = [
            {"path": lora.path, "scale": lora.scale, "sha256": known_sha256(local_file(lora.path))}
            for lora in request.loras
        ]
        named = {field: getattr(request, field) for field in MEDIA_FIELDS}
        paths = {field: value for field, value in named.items() if value is not None}
        if inputs is None:
            media = {field: known_sha256(local_file(value)) for field, value in paths.items()}
        else:
            media = dict(zip(paths, inputs.sha256, strict=True))
        return cls(weight_digests(checkpoint_files(request)), loras, media)

    @property
    def digest(self) -> str:
        """One digest of all."""
        return combined([self.weights, self.loras, self.media])
