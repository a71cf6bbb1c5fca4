"""Digests of everything a run was made from."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tqdm.auto import tqdm

from talkinghead_lab.errors import TalkingHeadError
from talkinghead_lab.foundation.digests import FileState, cached_sha256, combined, known_sha256
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.inputs import Inputs
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.weights.digests import weight_states
from talkinghead_lab.weights.load_settings import LoadSettings

SECONDS_WITHOUT_BAR = 2


@dataclass(frozen=True)
class InputDigests:
    """Digests of weights, LoRAs and media: a video is a function of these and of the request.

    Args:
        weights: by place in the checkpoint.
        loras: path, scale and digest of each, in the order in which they are merged.
        media: by the request's field, as `GenerationParams.media` names them.
    """

    weights: dict[str, str]
    loras: list[dict[str, Any]]
    media: dict[str, str]

    @classmethod
    def of(
        cls,
        request: GenerationParams,
        inputs: Inputs | None = None,
        networks: LoadSettings | None = None,
        show_progress: bool = False,
    ) -> Self:
        """Compute the digests of a request.

        Args:
            request: names the files.
            inputs: media that were read already; None: digests of the files as they are now.
            networks: how the networks are loaded; its states of files are those that count. None: weights
                and LoRAs as they are now.
            show_progress: draw a progress bar if it takes more than two seconds.

        Raises:
            CheckpointError: a weight file is missing, or has changed since its state was taken.
            MediaError: a medium is missing.
        """
        if networks is None:
            weights = weight_states(checkpoint_files(request))
            loras = [FileState.of(local_file(lora.path)) for lora in request.loras]
        else:
            weights = dict(networks.weights)
            loras = [lora.state or FileState.of(lora.path) for lora in networks.loras]
        sha256 = _hashed([*weights.values(), *loras], show_progress)
        if inputs is None:
            media = {field: known_sha256(local_file(path)) for field, path in request.media.items()}
        else:
            media = dict(zip(request.media, inputs.sha256, strict=True))
        return cls(
            {name: sha256[state] for name, state in weights.items()},
            [
                {"path": lora.path, "scale": lora.scale, "sha256": sha256[state]}
                for lora, state in zip(request.loras, loras, strict=True)
            ],
            media,
        )

    @classmethod
    def begin(
        cls, request: GenerationParams, inputs: Inputs, networks: LoadSettings, show_progress: bool
    ) -> Callable[[], "InputDigests"]:
        """Start to compute the digests in a thread, beside loading and sampling.

        Hashing the released weights takes a minute unless their digests are cached.

        Returns:
            A function that waits for the digests; it raises the errors of `of`.
        """
        found: Future[InputDigests] = Future()

        def compute() -> None:
            try:
                found.set_result(cls.of(request, inputs, networks, show_progress))
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=compute, name="digests", daemon=True).start()
        return found.result

    @staticmethod
    def need_hashing(request: GenerationParams) -> bool:
        """Whether the digest of a weight file is not cached, so that computing the digests takes long."""
        try:
            states = weight_states(checkpoint_files(request)).values()
        except TalkingHeadError:
            return False
        return any(cached_sha256(state) is None for state in states)

    @property
    def digest(self) -> str:
        """One digest of all."""
        return combined([self.weights, self.loras, self.media])


def seen_files(inputs: Inputs, networks: LoadSettings) -> str:
    """What processes on one host compare to know that they read the same files, without hashing weights."""
    loras = [lora.state for lora in networks.loras]
    return combined([dict(networks.weights), loras, inputs.sha256])


def _hashed(states: list[FileState], show_progress: bool) -> dict[FileState, str]:
    """The digest of each file."""
    found = {}
    known = all(cached_sha256(state) is not None for state in states)
    with tqdm(
        total=sum(state.size for state in states),
        unit="B",
        unit_scale=True,
        desc="hashing weights",
        delay=SECONDS_WITHOUT_BAR,
        disable=not show_progress or known,  # a notebook keeps a widget of every bar, also of unseen ones
        leave=False,
    ) as bar:
        for state in states:
            bar.set_description(f"hashing {Path(state.path).name}", refresh=False)
            found[state] = known_sha256(state)
            bar.update(state.size)
    return found
