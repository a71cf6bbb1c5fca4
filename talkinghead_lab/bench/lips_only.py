"""Measure `lips_only`: how much of drawn driving videos stays when they speak another clip's recording.

Make the clips with `python -m talkinghead_lab benchmark manifest drawn FOLDER --identities 16 --seconds 6`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from talkinghead_lab.evaluation.drawn import open_manifest
from talkinghead_lab.evaluation.manifest import Clip
from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.measures.frames import LumaChanges, seam_jump
from talkinghead_lab.measures.lips import lip_correlation
from talkinghead_lab.media.inputs import CopiedVideo
from talkinghead_lab.media.pixels import to_uint8, to_unit_range
from talkinghead_lab.models.judges.face_reader import mouth_opening
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.chunk_generator import ChunkGenerator
from talkinghead_lab.pipeline.lips_only import keep
from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.pipeline.request import resolve
from talkinghead_lab.pipeline.request_media import read_inputs
from talkinghead_lab.sampling.chunks import seams

MEASURES = ("outside_psnr", "lip_correlation", "own_correlation", "seam_jump", "seam_jump_of_the_video")


def measure_clip(request: GenerationParams, pipeline: Pipeline, own: Clip, other: Clip) -> dict[str, float]:
    """Dub one clip, and compare it before encoding with the clip's video.

    `outside_psnr` is in dB, outside of the border; equal frames give infinity. `own_correlation` is that with
    the mouth of the driving video, which should be gone.
    """
    inputs = read_inputs(request)
    resolved = resolve(request, inputs)
    serving = pipeline.serving(resolved)
    generator = ChunkGenerator(serving, serving.encode(inputs, resolved), resolved)
    made, sources, weights, previous = [], [], [], None
    for chunk in resolved.chunks:
        generated = generator.generate(chunk, previous)
        previous = generated.frames
        assert isinstance(inputs.reference, CopiedVideo)
        source = inputs.reference.fitted_frames(
            chunk.seconds, chunk.frames, resolved.frame_size, resolved.framing
        )
        new = slice(chunk.repeated, chunk.repeated + chunk.new)
        made.append(torch.from_numpy(to_uint8(generated.new_frames)))
        sources.append(source[new].permute(0, 2, 3, 1))
        weights.append(keep(source, request.lips_border).weights[0, new])
    frames, source, weight = torch.cat(made), torch.cat(sources), torch.cat(weights)
    openings = mouth_opening(to_unit_range(frames.permute(0, 3, 1, 2))).double().numpy()
    found = {
        "outside_psnr": _psnr(frames[weight == 0], source[weight == 0]),
        "lip_correlation": lip_correlation(openings, _truth(other)).value,
        "own_correlation": lip_correlation(openings, _truth(own)).value,
        "seam_jump": _jump(frames, seams(resolved.chunks)),
        "seam_jump_of_the_video": _jump(source, seams(resolved.chunks)),
    }
    return {name: float("nan") if value is None else float(value) for name, value in found.items()}


def _psnr(pixels: Tensor, truth: Tensor) -> float:
    error = (pixels.float() - truth.float()).square().mean().item()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _truth(clip: Clip) -> np.ndarray:
    assert clip.truth is not None, "clips of drawn presenters"
    return np.asarray(json.loads(clip.truth.read_text("utf-8")))


def _jump(frames: Tensor, numbers: Sequence[int]) -> float | None:
    changes = LumaChanges()
    for frame in frames:
        changes.add(frame.numpy())
    return seam_jump(changes.values, numbers).value


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a JSON line a clip, then the mean and the worst of each measure."""
    parser = CommandParser(prog="python -m talkinghead_lab.bench.lips_only", description=__doc__)
    parser.add_argument("manifest", type=Path, help="YAML file of drawn clips")
    parser.add_argument(
        "--whole", action="store_true", help="generate the whole frame instead, for comparison"
    )
    options = parser.parse_args(arguments)
    manifest = open_manifest(options.manifest)
    clips, rows, pipeline = {clip.id: clip for clip in manifest.clips}, [], None
    for clip in tqdm(manifest.clips, unit="clip"):
        other = clips[clip.other]
        request = GenerationParams(
            image_path=str(clip.video), audio_path=str(other.video), frame_size="160x160",
            lips_only=not options.whole,
        )  # fmt: skip
        pipeline = pipeline or Pipeline.load(request)
        rows.append(measure_clip(request, pipeline, clip, other))
        print(json.dumps({"clip": clip.id, **rows[-1]}), flush=True)
    for name in MEASURES:
        values = np.array([row[name] for row in rows])
        print(f"{name}: mean {values.mean():.3f}, from {values.min():.3f} to {values.max():.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
