"""The causal video autoencoder of Wan 2.1: one latent frame for the first video frame, then one per four.

Every layer is causal in time, so a video is processed in pieces and memory does not grow with the number of
frames.

Architecture and latent statistics: Wan 2.1 (arXiv 2503.20314), weights `Wan2.1_VAE.pth`. Submodules have the
names of the released tensors.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError, InvalidRequest
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.kernels.optional_kernels import Status, kernels_of
from talkinghead_lab.models.released_names import Shapes, count_blocks, shape_of
from talkinghead_lab.models.vae.concurrent_frames import LARGEST_FRAME, decode_concurrently
from talkinghead_lab.models.vae.frame_by_frame import FrameStream, depth_first
from talkinghead_lab.models.vae.layers import (
    AttentionBlock,
    CausalConv3d,
    CausalState,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
)
from talkinghead_lab.models.vae.shared_decoding import decode_together

RELEASED_FILE = "Wan2.1_VAE.pth"
KERNELS = "vae_blocks"  # in `optional_kernels`

# Mean and standard deviation of the 16 channels of the released latents (Wan 2.1, `WanVAE`).
RELEASED_LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
RELEASED_LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder.

    Args:
        dim: channels after the first convolution of the encoder.
        z_dim: latent channels C.
        stage_dims: channels at each resolution, from full resolution down; height and width halve in between.
        num_res_blocks: residual blocks of an encoder stage; a decoder stage has one more.
        temporal_downsample: for each spatial halving, whether time is halved as well.
        latent_mean, latent_std: statistics of each latent channel, by which `encode` normalises.
    """

    dim: int
    z_dim: int
    stage_dims: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.stage_dims) - 1:
            raise CheckpointError(
                "`temporal_downsample` needs one entry between every two stages",
                received=self.temporal_downsample,
                allowed=f"{len(self.stage_dims) - 1} booleans",
            )
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise CheckpointError(
                    f"`{name}` does not fit the {self.z_dim} latent channels of `conv2.weight`",
                    received=f"{len(getattr(self, name))} numbers",
                    allowed=f"{self.z_dim} numbers",
                    remedy="Set it in the .json file next to the weights.",
                )

    @property
    def frames_per_latent(self) -> int:
        """Video frames per latent frame, except the first, which holds one."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def pixels_per_latent(self) -> int:
        """Height and width of one latent position in pixels."""
        return 2 ** len(self.temporal_downsample)

    @classmethod
    def from_tensors(cls, shapes: Shapes, fields: Mapping[str, Any]) -> "VAEConfig":
        """Read the sizes from the tensors of a checkpoint; `fields` may set the latent statistics.

        Raises:
            CheckpointError: a required tensor is missing, or the statistics do not fit the latents.
        """
        stages, temporal = _encoder_stages(shapes)
        return cls(
            dim=shape_of(shapes, "encoder.conv1.weight", 5, RELEASED_FILE)[0],
            z_dim=shape_of(shapes, "conv2.weight", 5, RELEASED_FILE)[0],
            stage_dims=tuple(
                shape_of(shapes, f"{blocks[0]}.residual.6.weight", 5, RELEASED_FILE)[0] for blocks in stages
            ),
            num_res_blocks=len(stages[0]),
            temporal_downsample=tuple(temporal),
            latent_mean=tuple(fields.get("latent_mean", RELEASED_LATENT_MEAN)),
            latent_std=tuple(fields.get("latent_std", RELEASED_LATENT_STD)),
        )


def _encoder_stages(shapes: Shapes) -> tuple[list[list[str]], list[bool]]:
    """Names of the residual blocks of each encoder stage, and whether time is halved after each stage."""
    stages: list[list[str]] = [[]]
    temporal: list[bool] = []
    for number in range(count_blocks(shapes, "encoder.downsamples.")):
        layer = f"encoder.downsamples.{number}"
        if f"{layer}.resample.1.weight" in shapes:
            temporal.append(f"{layer}.time_conv.weight" in shapes)
            stages.append([])
        else:
            stages[-1].append(layer)
    for number, blocks in enumerate(stages):
        if len(blocks) != len(stages[0]) or not blocks:
            raise CheckpointError(
                f"stage {number} of `encoder.downsamples` lacks residual blocks or has too many",
                received=f"{len(blocks)}, but {len(stages[0])} in the first stage",
                remedy=f"Check that the file is complete and has the layout of {RELEASED_FILE}.",
            )
    return stages, temporal


def from_released(tensors: dict[str, Tensor], config: VAEConfig) -> dict[str, Tensor]:
    """The tensors unchanged: the modules have the released names."""
    return dict(tensors)


def _middle_blocks(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


class Encoder(nn.Module):
    """Frames [B, 3, F, H, W] to moments [B, 2C, T, h, w], piece by piece."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(3, config.dim, (3, 3, 3))
        self.downsamples = nn.ModuleList()
        width = config.dim
        for stage, stage_dim in enumerate(config.stage_dims):
            for _ in range(config.num_res_blocks):
                self.downsamples.append(ResidualBlock(width, stage_dim))
                width = stage_dim
            if stage < len(config.temporal_downsample):
                self.downsamples.append(Downsample(width, config.temporal_downsample[stage]))
        self.middle = _middle_blocks(width)
        self.head = Head(width, 2 * config.z_dim)

    def layers(self) -> list[nn.Module]:
        """The layers in the order they run."""
        return [self.conv1, *self.downsamples, *self.middle, self.head]

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """One piece [B, 3, F, H, W] → [B, 2C, T, h, w]."""
        for layer in self.layers():
            x = layer(x, state)
        return x


class Decoder(nn.Module):
    """Latents [B, C, T, h, w] to frames [B, 3, F, H, W], piece by piece."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.stage_dims[-1]
        self.conv1 = CausalConv3d(config.z_dim, width, (3, 3, 3))
        self.middle = _middle_blocks(width)
        self.upsamples = nn.ModuleList()
        temporal = config.temporal_downsample[::-1]
        for stage, stage_dim in enumerate(config.stage_dims[::-1]):
            for _ in range(config.num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(width, stage_dim))
                width = stage_dim
            if stage < len(temporal):
                self.upsamples.append(Upsample(width, temporal[stage]))
                width //= 2
        self.head = Head(width, 3)

    def layers(self) -> list[nn.Module]:
        """The layers in the order they run."""
        return [self.conv1, *self.middle, *self.upsamples, self.head]

    def forward(self, x: Tensor, state: CausalState) -> Tensor:
        """One piece [B, C, T, h, w] → [B, 3, F, H, W]."""
        layers = self.layers()
        if x.shape[2] == 1:
            return depth_first(layers, x, state)
        for layer in layers:
            x = layer(x, state)
        return x


class VAE(nn.Module):
    """The autoencoder. Inputs move to the weights' device and dtype piece by piece; results are float32."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        # With several processes, all must decode the same latents.
        self.group = SequenceParallelGroup()
        self.kernel_status = Status("not available", "not asked for")

    def set_decoder_dtype(self, dtype: torch.dtype) -> "VAE":
        """Convert only the weights that decode; returns this autoencoder."""
        self.conv2.to(dtype)
        self.decoder.to(dtype)
        return self

    def use_kernels(self, device: torch.device) -> "VAE":
        """Fuse the residual blocks where the kernels passed their self-check; returns this autoencoder."""
        kernels = kernels_of(device)
        runs, self.kernel_status = kernels.runs(KERNELS), kernels.status(KERNELS)
        for module in self.modules():
            if isinstance(module, ResidualBlock | Head):
                module.has_triton_kernels = runs
        return self

    @property
    def decode_type(self) -> torch.dtype:
        """Type of the weights that decode."""
        return self.conv2.weight.dtype

    def encode(self, video: Tensor, latents_per_piece: int = 1) -> Tensor:
        """The normalised latent of a video: the mean of the posterior, without sampling.

        Args:
            video: [B, 3, F, H, W] in [−1, 1]; F of the form 4n + 1, H and W multiples of 8 (released sizes).
            latents_per_piece: latent frames per piece; more take more memory and, on a CPU, more time.

        Returns:
            [B, C, T, h, w], float32.

        Raises:
            InvalidRequest: the number of frames, the height or the width has another form.
        """
        return self.normalise(self.posterior(video, latents_per_piece)[0])

    def posterior(self, video: Tensor, latents_per_piece: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent before normalisation, each [B, C, T, h, w], float32."""
        self._check_video(video.shape)
        if latents_per_piece == 1:
            return self._posterior_of_frames((frame, False) for frame in video.split(1, dim=2))
        state: CausalState = {}
        return _mean_and_log_variance(
            self.conv1(self.encoder(piece.to(self.conv1.weight), state), state)
            for piece in self._pieces(video, latents_per_piece)
        )

    def encode_first_frame_then_zeros(self, image: Tensor, frames: int) -> Tensor:
        """`encode` of an image followed by frames − 1 frames of zeros, without processing all of them.

        The outputs of the layers become constant one after another, those of the costly first layers within a
        few frames, and a constant layer is not run again. The result equals that of `encode`.

        Args:
            image: [B, 3, H, W] in [−1, 1].
            frames: F, of the form 4n + 1.

        Returns:
            [B, C, T, h, w], float32.
        """
        self._check_video((*image.shape[:2], frames, *image.shape[2:]))
        first = image[:, :, None]
        zeros = torch.zeros_like(first)
        rest = ((zeros, number > 0) for number in range(frames - 1))
        return self.normalise(self._posterior_of_frames(chain([(first, False)], rest))[0])

    def _posterior_of_frames(self, frames: Iterable[tuple[Tensor, bool]]) -> tuple[Tensor, Tensor]:
        """`posterior` of frames [B, 3, 1, H, W], each with whether it equals the previous one."""
        stream = FrameStream([*self.encoder.layers(), self.conv1])
        moments = (stream.push(frame.to(self.conv1.weight), repeated) for frame, repeated in frames)
        return _mean_and_log_variance(moment for moment in moments if moment is not None)

    def decode(self, latent: Tensor, latents_per_piece: int = 1) -> Tensor:
        """The video [B, 3, F, H, W] of a normalised latent [B, C, T, h, w]: float32, clamped to [−1, 1]."""
        return torch.cat(list(self.decode_pieces(latent, latents_per_piece)), dim=2)

    def decode_pieces(
        self, latent: Tensor, latents_per_piece: int = 1, clamp: bool = True
    ) -> Iterator[Tensor]:
        """Decode a normalised latent [B, C, T, h, w] piece by piece, in order.

        Args:
            latent: [B, C, T, h, w].
            latents_per_piece: latent frames per piece; more take more memory and, on a CPU, more time.
            clamp: clamp the frames to [−1, 1]; training turns it off to keep the gradients outside the range.

        Yields:
            [B, 3, f, H, W], float32; f is 4 per latent frame, but 1 for the very first.

        Raises:
            InvalidRequest: the latent has a different number of channels than the network.
        """
        if latent.ndim != 5 or latent.shape[1] != self.config.z_dim or 0 in latent.shape:
            raise InvalidRequest(
                "not a latent of this autoencoder",
                received=list(latent.shape),
                allowed=f"[B, {self.config.z_dim}, T, h, w]",
            )
        state: CausalState = {}
        latent = self.denormalise(latent.to(self.conv2.weight.device)).to(self.conv2.weight.dtype)
        pieces = latent.split(_at_least_one(latents_per_piece), dim=2)
        layers = [self.conv2, *self.decoder.layers()]
        if latents_per_piece == 1 and self.group.size > 1:
            decoded = decode_together(layers, pieces, state, self.group)
        elif latents_per_piece == 1 and self._decodes_concurrently(latent):
            decoded = decode_concurrently(layers, pieces, state)
        else:
            decoded = (self.decoder(self.conv2(piece, state), state) for piece in pieces)
        for frames in decoded:
            yield frames.float().clamp(-1, 1) if clamp else frames.float()

    def _decodes_concurrently(self, latent: Tensor) -> bool:
        pixels = latent.shape[3] * latent.shape[4] * self.config.pixels_per_latent**2
        concurrent = latent.device.type == "cpu" and torch.get_num_threads() > 1 and pixels <= LARGEST_FRAME
        return concurrent and not torch.is_grad_enabled()

    def normalise(self, mean: Tensor) -> Tensor:
        """Normalise the mean of the posterior for the transformer."""
        latent_mean, latent_std = self._statistics(mean)
        return (mean.float() - latent_mean) / latent_std

    def denormalise(self, latent: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        latent_mean, latent_std = self._statistics(latent)
        return latent.float() * latent_std + latent_mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.config.latent_mean, self.config.latent_std
        shape = (-1, 1, 1, 1)
        return (
            torch.tensor(mean, dtype=torch.float32, device=like.device).view(shape),
            torch.tensor(std, dtype=torch.float32, device=like.device).view(shape),
        )

    def _pieces(self, video: Tensor, latents_per_piece: int) -> Iterator[Tensor]:
        """Split a video into pieces of `latents_per_piece` latent frames each."""
        step = self.config.frames_per_latent
        piece = _at_least_one(latents_per_piece) * step
        first = piece - step + 1
        yield video[:, :, :first]
        if video.shape[2] > first:
            yield from video[:, :, first:].split(piece, dim=2)

    def _check_video(self, shape: Sequence[int]) -> None:
        pixels, step = self.config.pixels_per_latent, self.config.frames_per_latent
        is_video = len(shape) == 5 and shape[1] == 3 and min(shape) > 0
        if not is_video or (shape[2] - 1) % step or shape[3] % pixels or shape[4] % pixels:
            raise InvalidRequest(
                "the autoencoder cannot encode a video of this size",
                received=list(shape),
                allowed=f"[B, 3, F, H, W] with F = {step}n + 1, H and W multiples of {pixels}",
            )


def _mean_and_log_variance(moments: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    mean, log_variance = torch.cat([moment.float() for moment in moments], dim=2).chunk(2, dim=1)
    return mean, log_variance


def _at_least_one(latents_per_piece: int) -> int:
    if latents_per_piece < 1:
        raise InvalidRequest(
            "`latents_per_piece` is too small", received=latents_per_piece, allowed="1 or more"
        )
    return latents_per_piece
