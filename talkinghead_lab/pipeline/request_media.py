"""Reads the media of a request, once per run, before any network is loaded."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from talkinghead_lab.errors import MediaError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.foundation.snapshot import READ_ONLY, Snapshot
from talkinghead_lab.media import audio
from talkinghead_lab.media.acceptance import NO_FURTHER_LIMITS, MediaLimits
from talkinghead_lab.media.inputs import Inputs, Shot, open_copy
from talkinghead_lab.media.isolated import Call, call_here
from talkinghead_lab.media.reference import ReferenceMedia
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.continuation import last_frames
from talkinghead_lab.pipeline.lips_only import check_mask
from talkinghead_lab.pipeline.portrait import frame_picture
from talkinghead_lab.pipeline.scenes import split_at_cuts
from talkinghead_lab.pipeline.shots import later_shots


def copied(field: str, value: str) -> Snapshot:
    """Copy the file of a request's field to a temporary folder; errors as for `read_inputs`."""
    path = local_file(value)
    try:
        descriptor = os.open(path, READ_ONLY)
    except OSError as error:
        raise MediaError(f"no such file ({error.strerror})", received=value) from None
    try:
        return Snapshot.take(descriptor, str(path))
    finally:
        os.close(descriptor)


def read_inputs(
    request: GenerationParams,
    copy: Callable[[str, str], Snapshot] = copied,
    *,
    call: Call = call_here,
    limits: MediaLimits = NO_FURTHER_LIMITS,
) -> Inputs:
    """Copy and read the media of a request. No network is needed: mistakes show before weights are loaded.

    Args:
        request: names the files.
        copy: copies the file of a field, given the field's name and its value.
        call, limits: see `Inputs.read`.

    Raises:
        MediaError: a file is missing or cannot be used.
        OutputError: there is no space for a copy.
        InvalidRequest: the request's crop, padding, speaker boxes or masks cannot be used with this picture,
            or `continue_video` is too short.
    """
    copies = {field: copy(field, path) for field, path in request.media.items()}

    def opened(field: str, background: str = request.background) -> ReferenceMedia:
        return open_copy(copies[field], background, call, limits)

    inputs = _first_picture_and_sound(request, copies, call, limits)
    picture = frame_picture(request, inputs.reference, inputs.masks)
    # Whoever has no recording hears digital silence, as in the released pipeline.
    silent = [np.zeros_like(inputs.voices[0])] * (request.speakers - len(inputs.voices))
    continued = None
    if request.continue_video is not None:
        continued = last_frames(request, opened("continue_video"), inputs.frame_size)
    mask = None
    if request.lips_mask is not None:
        mask = check_mask(opened("lips_mask", "black"), inputs.reference.size)
    later, warnings = later_shots(request, opened, inputs.frame_size)
    if request.scene_cuts:
        shots = (Shot(inputs.reference, picture.framing), *later)
        later = split_at_cuts(request, shots, video_frames(request, inputs), inputs.frame_size)[1:]
    return replace(
        inputs,
        voices=(*inputs.voices, *silent),
        sha256=tuple(file.sha256 for file in copies.values()),
        framing=picture.framing,
        warnings=inputs.warnings + picture.warnings + warnings,
        continued=continued,
        later=later,
        lips_mask=mask,
    )


def _first_picture_and_sound(
    request: GenerationParams, copies: Mapping[str, Snapshot], call: Call, limits: MediaLimits
) -> Inputs:
    """Read the first picture, masks and sound; `copies` has every file by its key in `request.media`."""
    return Inputs.read(
        copies["image_path"],
        [copies[field] for field in request.recordings],
        request.audio_mix,
        request.resolution,
        request.forced_size,
        request.audio_track,
        request.audio_start,
        request.background,
        [file for field, file in copies.items() if field.startswith("speaker_masks.")],
        segments=request.segments or (),
        loudness=request.speaker_loudness or (),
        call=call,
        limits=limits,
    )


def video_frames(request: GenerationParams, inputs: Inputs) -> int:
    """How many frames the video has."""
    recorded = audio.frame_count(inputs.voices[0])
    return min(recorded, request.max_frames or recorded)
