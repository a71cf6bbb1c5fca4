"""Starts a request as `generate` does, up to its first chunk."""

from typing import Any

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import Resolved, resolve
from talkinghead_lab.pipeline.request_media import read_inputs


def start(request: GenerationParams, pipeline: Pipeline | None = None, **options: Any) -> ChunkGenerator:
    """A generator for the chunks of a request; `options` are those of `Pipeline.encode`."""
    inputs = read_inputs(request)
    resolved = resolve(request, inputs)
    serving = (pipeline or Pipeline.load(request)).serving(resolved)
    return ChunkGenerator(serving, serving.encode(inputs, resolved, **options), resolved, **options)


def resolved_for(request: GenerationParams) -> Resolved:
    """The settings of a request."""
    return resolve(request, read_inputs(request))
