"""Train the transformer with flow matching on streaming chunks that start from given latent frames."""

from typing import Any

import torch
from torch import Tensor, nn

from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.kernels.attention import Rotation
from talkinghead_lab.sampling.schedule import TRAINED_TIMESTEPS
from talkinghead_lab.training.data import EncodedVideos, TrainingBatch
from talkinghead_lab.training.schedule import Budget, NetworkTraining, step_generator
from talkinghead_lab.weights.writing import Networks

TRAINED_SHIFT = 3.0
# Share of the training after which narrated examples start: the model learns lip motion first, then to rely
# only partly on the audio.
NARRATED_FROM = 0.6
# Rows and columns of the latent that contain the mouth in any pose; errors there have more weight.
MOUTH_ROWS, MOUTH_COLUMNS, MOUTH_WEIGHT = (0.52, 0.82), (0.32, 0.68), 5.0


def random_times(count: int, generator: torch.Generator) -> Tensor:
    """Times [count] in (0, 1): uniform, then shifted like the noise schedule of sampling."""
    t = torch.rand(count, generator=generator, device=generator.device)
    return TRAINED_SHIFT * t / (1 + (TRAINED_SHIFT - 1) * t)


def mouth_weights(height: int, width: int, device: torch.device | str) -> Tensor:
    """Error weights [h, w] of mean 1."""
    weights = torch.ones(height, width, device=device)
    rows, columns = (
        slice(round(low * size), round(high * size))
        for (low, high), size in ((MOUTH_ROWS, height), (MOUTH_COLUMNS, width))
    )
    weights[rows, columns] = MOUTH_WEIGHT
    return weights / weights.mean()


def text_tokens(networks: Networks, ids: Tensor, mask: Tensor) -> Tensor:
    """Encoded prompts [B, text_len, text width] with zeros at padding, the input of `DiT.text_context`."""
    hidden = networks.text_encoder.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    tokens: Tensor = hidden * mask[..., None]
    return tokens


def predict(
    networks: Networks,
    noisy: Tensor,
    times: Tensor,
    batch: TrainingBatch,
    rotation: Rotation,
    bf16: bool,
    regions: Tensor | None = None,
) -> Tensor:
    """Velocity [B, C, T, h, w] of noisy latents at times in [0, 1]; speaker `regions` as for the blocks."""
    dit: DiT = networks.dit
    device = noisy.device.type
    time = dit.time_embedding_of(times * TRAINED_TIMESTEPS)
    tokens = dit.patchify(noisy, batch.condition).to(torch.bfloat16 if bf16 else torch.float32)
    with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):
        texts = text_tokens(networks, batch.ids, batch.mask)
        text = dit.text_context(list(texts), precompute=False)
        image = dit.image_context(networks.image_encoder(batch.portrait), precompute=False)
        audio = dit.audio_context(batch.windows, precompute=False)
        tokens = dit.run_blocks(tokens, time, rotation, text, image, audio, regions)
    return dit.unpatchify(tokens.float(), time, noisy.shape)


def train_dit(
    networks: Networks, videos: EncodedVideos, budget: Budget, seed: int, batch: int = 32, **options: Any
) -> NetworkTraining:
    """Train the transformer together with the text and image encoders."""
    trained = nn.ModuleList([networks.dit, networks.text_encoder, networks.image_encoder])
    trained.train().requires_grad_(True)
    if videos.portraits.is_cuda:
        compile_blocks(networks.dit)
    run = NetworkTraining("dit", trained, budget, peak=1e-3, matrix_peak=2e-3, decay=0.999, **options)
    examples, advance = Examples(networks, videos, batch, seed), None
    for step in run.steps():
        examples.fill(step, narrated=run.progress > NARRATED_FROM)
        advance = advance or run.captured(examples.loss)
        run.after_step(step, **advance())
    trained.eval().requires_grad_(False)
    return run


class Examples:
    """Fixed buffers with the examples of a step, so that a CUDA graph can capture the step.

    Args:
        count: examples per step.
        drops: drop text and audio at random, as classifier-free guidance requires.
    """

    def __init__(
        self, networks: Networks, videos: EncodedVideos, count: int, seed: int, drops: bool = True
    ) -> None:
        self.networks, self.videos = networks, videos
        self.count, self.seed, self.drops = count, seed, drops
        device, shape = videos.portraits.device, videos.chunks.shape[2:]
        self.rotation = networks.dit.rotation(shape, device)
        self.regions: Tensor | None = None
        self.weights = mouth_weights(shape[-2], shape[-1], device)
        self.batch = self._draw(step_generator(seed, 0, device))
        self.times = torch.zeros(count, device=device)
        self.noise = torch.zeros(count, *shape, device=device)

    def _draw(self, generator: torch.Generator, narrated: bool = False) -> TrainingBatch:
        window = self.networks.dit.config.audio_window
        return self.videos.draw(self.count, generator, window, self.drops, narrated)

    def fill(self, step: int, narrated: bool = False) -> None:
        """Write new random examples into the buffers."""
        generator = step_generator(self.seed, step, self.times.device)
        for name, value in vars(self._draw(generator, narrated)).items():
            getattr(self.batch, name).copy_(value)
        self.times.copy_(random_times(self.count, generator))
        self.noise.copy_(torch.randn(self.noise.shape, generator=generator, device=self.noise.device))

    def noisy(self) -> Tensor:
        """Interpolation of latent and noise [B, C, T, h, w]; given latent frames stay clean."""
        times = self.times.view(-1, 1, 1, 1, 1)
        mixed = (1 - times) * self.batch.latent + times * self.noise
        return torch.where(self.batch.given, self.batch.motion, mixed)

    def velocity(self, noisy: Tensor, batch: TrainingBatch) -> Tensor:
        """Velocity predicted from `noisy` under the conditions of `batch`."""
        return predict(self.networks, noisy, self.times, batch, self.rotation, noisy.is_cuda, self.regions)

    def error(self, velocity: Tensor, target: Tensor) -> Tensor:
        """Weighted mean squared error over the latent frames that are not given."""
        error = (velocity - target).square().mean(dim=1, keepdim=True) * self.weights
        wanted = (~self.batch.given).float().expand_as(error)
        return (error * wanted).sum() / wanted.sum()

    def loss(self) -> dict[str, Tensor]:
        """Flow-matching loss; the target velocity is noise minus latent."""
        velocity = self.velocity(self.noisy(), self.batch)
        return {"loss": self.error(velocity, self.noise - self.batch.latent)}


def compile_blocks(dit: DiT) -> None:
    """Compile the blocks; they share one compiled graph."""
    for block in dit.blocks:
        block.compile()


__all__ = ["compile_blocks", "mouth_weights", "predict", "random_times", "train_dit"]
