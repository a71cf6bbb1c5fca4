"""Train the face reader of the measures on renderings with known ground truth.

python -m talkinghead_lab.training.readers --people 20000 --batch 256 --device cuda
"""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn import functional

from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.models.judges import face_reader
from talkinghead_lab.training.avatar import POSE_LIMITS, Motion, render, sample_identity
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY


def random_motion(count: int, frames: int, generator: Generator) -> Motion:
    """`count` clips of `frames` unrelated frames with random mouth, pose and face, biased towards rest."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    mouth = uniform(count, frames, 5)
    mouth[..., 0] *= uniform(count, frames) > 0.12
    mouth[..., 1] = mouth[..., 1] * 1.5 - 0.8
    mouth[..., 2] = (0.5 - mouth[..., 1] * 0.6 + 0.3 * (uniform(count, frames) - 0.5)).clamp(0, 1)
    bounds = torch.tensor(list(POSE_LIMITS.values()))
    rest = torch.tensor([0.0, 0, 0, 0, 0, 1])
    reach = uniform(count, frames, 6) ** 0.7 * torch.where(uniform(count, frames, 6) < 0.5, -1.0, 1.0)
    pose = rest + torch.where(reach < 0, reach.abs() * (bounds[:, 0] - rest), reach * (bounds[:, 1] - rest))
    face = uniform(count, frames, 5) * 2 - 1
    face[..., 2] = uniform(count, frames) * (uniform(count, frames) < 0.25)
    face[..., 4] = face[..., 4] * 0.6 + 0.4
    return Motion(mouth, pose, face)


def truth(motion: Motion) -> Tensor:
    """Ground truth [..., 7] of a motion, in the order of READINGS."""
    return torch.cat([motion.mouth[..., :1], motion.pose], -1)


def render_examples(
    people: int, frames_each: int, generator: Generator, device: str, first_seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Render `frames_each` frames per presenter at the reader's size (uint8), with ground truth [N, 7]."""
    motion = random_motion(people, frames_each, generator).to(device)
    seeds = (first_seed + torch.randint(FIRST_TEST_IDENTITY, (people,), generator=generator)).tolist()
    identities = [sample_identity(Generator().manual_seed(seed)) for seed in seeds]
    small = face_reader.reader_input(render(identities, motion).flatten(0, 1))
    return ((small + 1) * 127.5).round().clamp(0, 255).byte(), truth(motion).flatten(0, 1)


def disturb(frames: Tensor, readings: Tensor) -> tuple[Tensor, Tensor]:
    """Augment frames [B, 3, s, s] with mirroring and with artefacts of networks and codecs."""
    count, device = len(frames), frames.device

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, device=device) < share

    blurred = functional.avg_pool2d(functional.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    frames = torch.lerp(frames, blurred, torch.rand(count, 1, 1, 1, device=device) * some(0.6))
    coarse = functional.interpolate(functional.avg_pool2d(frames, 2), scale_factor=2, mode="bilinear")
    frames = torch.lerp(frames, coarse, torch.rand(count, 1, 1, 1, device=device) * some(0.3))
    frames = frames + torch.randn_like(frames) * 0.06 * torch.rand(count, 1, 1, 1, device=device) * some(0.6)
    patches = torch.randn(count, 3, 12, 12, device=device)
    frames = frames + functional.interpolate(patches, frames.shape[-2:]) * 0.04 * torch.rand(
        count, 1, 1, 1, device=device
    ) * some(0.3)
    frames = frames * (1 + 0.1 * torch.randn(count, 1, 1, 1, device=device))
    frames = frames + 0.05 * torch.randn(count, 3, 1, 1, device=device)
    mirror = some(0.5)
    sign = torch.tensor([1.0, -1, 1, -1, -1, 1, 1], device=device)
    readings = torch.where(mirror[:, :, 0, 0], readings * sign, readings)
    return torch.where(mirror, frames.flip(-1), frames), readings


def train(
    reader: face_reader.FaceReader,
    frames: Tensor,
    readings: Tensor,
    steps: int,
    batch: int,
    peak: float = 2e-3,
) -> None:
    """Fit the reader to uint8 frames with AdamW, a one-cycle learning rate and absolute error."""
    optimiser = torch.optim.AdamW(reader.parameters(), peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps, pct_start=0.1)
    scales = torch.tensor(face_reader.READING_SCALES, device=frames.device)
    for step in range(steps):
        chosen = torch.randint(len(frames), (batch,), device=frames.device)
        inputs, wanted = disturb(frames[chosen].float() / 127.5 - 1, readings[chosen])
        loss = ((reader(inputs) - wanted) / scales).abs().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step}: error {loss.item():.4f}", flush=True)


@torch.no_grad()
def errors(reader: face_reader.FaceReader, frames: Tensor, readings: Tensor) -> dict[str, float]:
    """Mean absolute error of each reading on uint8 frames."""
    read = torch.cat([reader(part.float() / 127.5 - 1) for part in torch.split(frames, 256)])
    return dict(zip(face_reader.READINGS, (read - readings).abs().mean(0).tolist(), strict=True))


def save(reader: face_reader.FaceReader, path: Path) -> None:
    """Replace the weight file atomically, in half precision."""
    unfinished = path.with_name(path.name + ".part")
    save_file(
        {name: tensor.detach().half().cpu() for name, tensor in reader.state_dict().items()}, unfinished
    )
    unfinished.rename(path)
    os.sync()


def main() -> None:
    """Train the reader and write its weights."""
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=3_000, help="training presenters, 20 frames each")
    parser.add_argument("--steps", type=int, default=6_000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=64, help="frames per step")
    parser.add_argument("--device", default="cpu", help="cuda or cpu")
    parser.add_argument("--seed", type=int, default=0, help="of examples and weights")
    parser.add_argument(
        "--output", type=Path, default=EMBEDDED_FOLDER / "face_reader.safetensors", help="weight file"
    )
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    generator = Generator().manual_seed(chosen.seed)
    parts = [
        render_examples(min(50, chosen.people), 20, generator, chosen.device)
        for _ in range(0, chosen.people, 50)
    ]
    frames, readings = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    print(f"rendered {len(frames)} frames", flush=True)
    reader = face_reader.FaceReader().to(chosen.device)
    train(reader, frames, readings, chosen.steps, chosen.batch)
    save(reader, chosen.output)
    print(errors(reader, *render_examples(200, 5, generator, chosen.device, FIRST_TEST_IDENTITY)))


if __name__ == "__main__":
    main()
