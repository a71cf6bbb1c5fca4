"""Generates the chunks of one request."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from talkinghead_lab.errors import OutOfMemory
from talkinghead_lab.foundation.devices import empty_cache
from talkinghead_lab.foundation.latent_grid import FRAMES_PER_LATENT, FRAMES_PER_SECOND, LatentGrid
from talkinghead_lab.media.colors import match_colors
from talkinghead_lab.media.inputs import Shot
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.speaker_masks import speaker_masks
from talkinghead_lab.models.dit.conditions import CrossAttentionContext, speaker_regions
from talkinghead_lab.offload.residency import handle_out_of_memory
from talkinghead_lab.pipeline.encoder_cache import EncodingStore, no_cache
from talkinghead_lab.pipeline.lips_only import KeptFrames, keep, masked
from talkinghead_lab.pipeline.pipeline import Conditions, Pipeline, dtype_name
from talkinghead_lab.pipeline.request import Resolved
from talkinghead_lab.pipeline.stages import Stage, no_stage
from talkinghead_lab.sampling.chunk_sampling import (
    ChunkConditions,
    KeptLatent,
    PassCount,
    noise_generator,
    sample_chunk,
)
from talkinghead_lab.sampling.chunks import Chunk, audio_windows
from talkinghead_lab.sampling.decoding import Finish, decode_chunk
from talkinghead_lab.sampling.schedule import noised
from talkinghead_lab.sampling.seams import SeamBlend


@dataclass(frozen=True)
class GeneratedChunk:
    """One sampled chunk.

    Args:
        chunk: its place in the video.
        latent: [C, T, h, w], on the CPU.
        frames: all its frames [3, F, H, W] in [−1, 1], on the CPU.
        decode_type: in which the frames were decoded.
        fp16_overflowed: whether decoding in fp16 overflowed, in this chunk or an earlier one of the run.
        passes: of the transformer, computed and skipped.
    """

    chunk: Chunk
    latent: Tensor
    frames: Tensor
    decode_type: torch.dtype = torch.float32
    fp16_overflowed: bool = False
    passes: PassCount = field(default_factory=PassCount)

    @property
    def new_frames(self) -> Tensor:
        """The frames that this chunk adds to the video."""
        return self.frames[:, self.chunk.repeated : self.chunk.repeated + self.chunk.new]


@dataclass
class _NewFrames:
    """Passes on those frames of a chunk's pieces that it adds to the video."""

    chunk: Chunk
    on_frames: Callable[[Tensor], None]
    start: int = 0

    def __call__(self, piece: Tensor) -> None:
        first = self.chunk.repeated - self.start
        new = piece[:, max(0, first) : max(0, first + self.chunk.new)]
        self.start += piece.shape[1]
        if new.shape[1]:
            self.on_frames(new)


@dataclass
class EncodedPicture:
    """A chunk's first frame as the transformer takes it.

    Args:
        pixels: uint8 [3, H, W].
        frames: of the longest chunk that `condition` serves.
        features: of the image encoder.
        context: the features as the transformer embeds them.
        condition: mask and latent, [1, 4 + C, T, h, w].
        motion: latent of the frame alone, [1, C, 1, h, w].
    """

    pixels: Tensor
    frames: int
    features: Tensor
    context: CrossAttentionContext
    condition: Tensor
    motion: Tensor


class ChunkGenerator:
    """Generates the chunks of one request; computes once what the chunks share.

    Args:
        pipeline: the networks, within the budget of the request.
        conditions: the encoded request.
        resolved: the request and its settings.
        stage: clocks the stages.
        cache: stores encodings of pictures.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        conditions: Conditions,
        resolved: Resolved,
        stage: Stage = no_stage,
        cache: EncodingStore = no_cache,
    ):
        self.pipeline, self.conditions, self.resolved = pipeline, conditions, resolved
        self.stage, self.cache = stage, cache
        self.width, self.height = conditions.frame_size
        self.plan = pipeline.requirements(resolved)
        self.shots = (Shot(conditions.reference, resolved.framing), *conditions.later)
        self._begin_shot(self.shots[0])
        # Keys and values of all blocks take much memory: within a budget they are recomputed at every step.
        # They are also recomputed where the strengths of LoRAs change from step to step.
        self.precompute = pipeline.budget is None and not resolved.sampling.lora_scales
        self.texts: dict[bool, CrossAttentionContext] = {}
        self.prompt = 0  # number of the prompt whose context `texts` holds
        # Holds for the rest of the run. A resumed run takes it over from its last finished chunk, so that it
        # makes the same frames as a run in one go.
        self.fp16_overflowed = False
        self.picture: EncodedPicture | None = None

    def generate(
        self,
        chunk: Chunk,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
        on_step: Callable[[int], None] = lambda step: None,
        on_frames: Callable[[Tensor], None] = lambda frames: None,
    ) -> GeneratedChunk:
        """Sample and decode one chunk.

        Args:
            chunk: one of `resolved.chunks`.
            previous: frames of the previous chunk, [3, ≥ motion_frame, H, W], the last of which are the
                overlap; the first chunk's are those of `conditions`. Chunks with overlap frames need it.
            noise: [C, T, h, w], instead of the seed's.
            on_step: called with the number of finished steps; an exception that it raises ends the sampling.
            on_frames: called with pieces of the new frames, [3, f, H, W] on the CPU, as they are decoded.

        Raises:
            OutOfMemory: with the plan's numbers; the device is left as it was before.
            CheckpointError: the frames contain NaN or infinity.
        """
        try:
            with torch.inference_mode():
                return handle_out_of_memory(
                    lambda: self._generate(chunk, previous, noise, on_step, on_frames),
                    self.pipeline.device,
                    lambda: self.plan,
                    self.pipeline.budget,
                )
        except OutOfMemory:
            self.texts, self.picture = {}, None
            empty_cache(self.pipeline.device)
            raise

    def _generate(
        self,
        chunk: Chunk,
        previous: Tensor | None,
        noise: Tensor | None,
        on_step: Callable[[int], None],
        on_frames: Callable[[Tensor], None],
    ) -> GeneratedChunk:
        pipeline, request = self.pipeline, self.resolved.request
        grid = LatentGrid(chunk.frames, self.height, self.width)
        previous = previous if chunk.index else self.conditions.continued
        shot = [each for each in self.shots if each.start <= chunk.first_new][-1]
        if shot is not self.shot:
            self._begin_shot(shot)
        if self.prompt != (prompt := self.resolved.prompt_of(chunk)):
            self.texts, self.prompt = {}, prompt
        self.picture = self._encode_picture(self._fit(chunk.seconds), chunk.frames)
        motion = self.picture.motion
        if chunk.repeated:
            assert previous is not None, "chunks with overlap frames need the previous frames"
            with self.stage("vae_encode"), pipeline.use(pipeline.vae):
                motion = pipeline.vae.encode(previous[None, :, -chunk.repeated :].to(pipeline.device))
        config = self.resolved.sampling
        video = self._source_frames(chunk) if request.lips_only or config.strength < 1 else None
        source = None if video is None else self._encode_source(video)
        kept = None
        if request.lips_only and video is not None:
            kept = keep(video, request.lips_border, self._lips_mask(chunk))
        generator = noise_generator(request.drawn_seed, chunk.index)
        drawn = torch.randn(grid.latent_shape(pipeline.vae.config.z_dim), generator=generator)
        noise = drawn if noise is None else noise
        with self.stage("sampling"), pipeline.use(pipeline.dit, self.plan.needs["sampling"]):
            start, passes = noise[None].to(pipeline.device), PassCount()
            kept_latent = None
            if kept is not None and source is not None:
                sampled = kept.latent_mask(pipeline.vae.config.pixels_per_latent).to(pipeline.device)
                kept_latent = KeptLatent(source, start, sampled)
            conditions = self._chunk_conditions(chunk, grid, motion, kept_latent)
            if source is not None and config.strength < 1:
                start = noised(source, start, config)
            embed_again = partial(self._embed_again, chunk, grid, motion, kept_latent)
            latent = sample_chunk(
                pipeline.dit, start, conditions, config, on_step, passes, generator, embed_again
            )
            del conditions
        finish = self._finishing(chunk, previous, kept)
        frames, decode_type = self._decode(latent, finish, _NewFrames(chunk, on_frames))
        latent = latent[0].cpu()
        return GeneratedChunk(chunk, latent, frames, decode_type, self.fp16_overflowed, passes)

    def _finishing(self, chunk: Chunk, previous: Tensor | None, kept: KeptFrames | None) -> Finish:
        """What is done to each decoded piece: colours, then the seam, then what stays of the video."""
        blend_frames = self.resolved.request.seam_frames
        blend = None
        if previous is not None and chunk.repeated and blend_frames:
            blend = SeamBlend(previous[:, -1:].to(self.pipeline.device), chunk.repeated, blend_frames)

        def finish(piece: Tensor, start: int) -> Tensor:
            piece = self._match_colors(piece, start, kept)
            piece = piece if blend is None else blend(piece, start)
            return piece if kept is None else kept.compose(piece, start)

        return finish

    def _decode(
        self, latent: Tensor, finish: Finish, on_frames: Callable[[Tensor], None]
    ) -> tuple[Tensor, torch.dtype]:
        """Decode a latent; once fp16 has overflowed, in fp32 without another attempt."""
        vae = self.pipeline.vae
        if self.fp16_overflowed:
            # Before the weights move to the device: within a budget, those in host memory are what stays.
            with torch.inference_mode(False):
                vae.set_decoder_dtype(torch.float32)
        first = vae.decode_type
        with self.stage("decode"), self.pipeline.use(vae):
            frames = decode_chunk(vae, latent, finish, on_frames)
            used = vae.decode_type
        self.fp16_overflowed |= used != first
        return frames, used

    def _match_colors(self, frames: Tensor, start: int, kept: KeptFrames | None) -> Tensor:
        """Match a piece to the picture, or each frame of it to the video's that surrounds it."""
        request = self.resolved.request
        if not request.use_color_correction:
            return frames
        strength = request.color_correction_strength
        if kept is None:
            return match_colors(frames, self.colors, strength)
        around = kept.frames[:, start : start + frames.shape[1]].to(frames)
        pairs = zip(frames.split(1, dim=1), around.unbind(1), strict=True)
        return torch.cat([match_colors(frame, reference, strength) for frame, reference in pairs], dim=1)

    def _begin_shot(self, shot: Shot) -> None:
        """Compute what the chunks of a shot share."""
        self.shot = shot
        self.colors = to_unit_range(self._fit(shot.start / FRAMES_PER_SECOND)).to(self.pipeline.device)
        self.regions = self._speaker_regions()

    def _fit(self, seconds: float) -> Tensor:
        return self.shot.fitted(seconds, self.conditions.frame_size)

    def _speaker_regions(self) -> Tensor | None:
        if len(self.conditions.audio) == 1:
            return None
        regions = self.conditions.masks or self.resolved.request.speaker_boxes
        size, frame = self.shot.reference.size, self.conditions.frame_size
        masks = speaker_masks(size, regions, frame, self.shot.framing)
        return speaker_regions(masks, self.pipeline.dit.config.patch_size).to(self.pipeline.device)

    def _encode_picture(self, pixels: Tensor, frames: int) -> EncodedPicture:
        known = self.picture
        if known is not None and known.frames >= frames and torch.equal(known.pixels, pixels):
            return known
        pipeline = self.pipeline
        picture = to_unit_range(pixels)[None].to(pipeline.device)
        with self.stage("image"):
            key = [picture, dtype_name(pipeline.image_encoder)]
            (features,) = self.cache("image", key, lambda: (pipeline.image_features(picture),))
            with pipeline.use(pipeline.dit):
                features = features.to(pipeline.device)
                context = pipeline.dit.image_context(features, self.precompute)
        with self.stage("vae_encode"), pipeline.use(pipeline.vae):
            key = [picture, frames, dtype_name(pipeline.vae)]
            encode = pipeline.vae.encode_first_frame_then_zeros
            (encoded,) = self.cache("portrait", key, lambda: (encode(picture, frames),))
            encoded = encoded.to(pipeline.device)
        # One channel per video frame of a latent frame; 1 where the frame is given.
        mask = encoded.new_zeros(1, FRAMES_PER_LATENT, *encoded.shape[2:])
        mask[:, :, 0] = 1
        # The autoencoder is causal, so the first latent frame is that of the picture alone.
        condition, motion = torch.cat([mask, encoded], dim=1), encoded[:, :, :1]
        return EncodedPicture(pixels, frames, features, context, condition, motion)

    def _embed_again(
        self, chunk: Chunk, grid: LatentGrid, motion: Tensor, kept: KeptLatent | None
    ) -> ChunkConditions:
        assert self.picture is not None
        context = self.pipeline.dit.image_context(self.picture.features, self.precompute)
        self.texts, self.picture = {}, replace(self.picture, context=context)
        return self._chunk_conditions(chunk, grid, motion, kept)

    def _source_frames(self, chunk: Chunk) -> Tensor:
        """The driving video during a chunk, uint8 [F, 3, H, W]."""
        return self.shot.fitted_frames(chunk.seconds, chunk.frames, self.conditions.frame_size)

    def _lips_mask(self, chunk: Chunk) -> Tensor | None:
        """The given mask during a chunk, as the driving video is framed, uint8 [F, 3, H, W]."""
        if self.conditions.lips_mask is None:
            return None
        mask = replace(self.shot, reference=self.conditions.lips_mask, framing=masked(self.shot.framing))
        return mask.fitted_frames(chunk.seconds, chunk.frames, self.conditions.frame_size)

    def _encode_source(self, frames: Tensor) -> Tensor:
        """The latent of frames uint8 [F, 3, H, W], [1, C, T, h, w]."""
        pipeline, frames = self.pipeline, to_unit_range(frames)
        with self.stage("vae_encode"), pipeline.use(pipeline.vae):
            # From host memory: the autoencoder moves one frame after another to its device.
            return pipeline.vae.encode(frames.transpose(0, 1)[None]).to(pipeline.device)

    def _chunk_conditions(
        self, chunk: Chunk, grid: LatentGrid, motion: Tensor, kept: KeptLatent | None
    ) -> ChunkConditions:
        assert self.picture is not None
        dit, device, keep = self.pipeline.dit, self.pipeline.device, self.precompute
        if not self.texts:
            prompts = (self.conditions.prompt, *self.conditions.later_prompts)
            texts = {True: prompts[self.prompt], False: self.conditions.negative_prompt}
            self.texts = {prompt: dit.text_context([text], keep) for prompt, text in texts.items()}
        voices = [audio_windows(voice, chunk, dit.config.audio_window) for voice in self.conditions.audio]
        speech = torch.stack(voices)[None].to(device)
        silence = torch.zeros_like(speech[:, :1])
        return ChunkConditions(
            picture=self.picture.condition[:, :, : grid.latent_frames],  # may come from a longer chunk
            image=self.picture.context,
            texts=self.texts,
            # Silence has one speaker even for two voices: so the model was trained.
            audios={True: dit.audio_context(speech, keep), False: dit.audio_context(silence, keep)},
            motion=motion,
            rotation=dit.rotation(grid.latent_shape(1), device),
            regions=self.regions,
            kept=kept,
        )
