"""Make the bundled sample portraits, recordings and driving video, and the README's contact sheet.

    python -m talkinghead_lab.training.samples talkinghead_lab/embedded

Presenters and voices are from the test split, which the bundled model was not trained on.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Generator, Tensor

from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.training.avatar import Motion, render
from talkinghead_lab.training.identity import FIRST_TEST_IDENTITY, Identity, rgb, sample_identity
from talkinghead_lab.training.motion import Performance, perform
from talkinghead_lab.training.speech import SAMPLE_RATE, Voice, speak

RECORDINGS = {
    "recording.wav": (
        "Hello, and welcome. I am only a drawing, but give me a voice, and I will talk. "
        "Shall we make a little film together?",
        Voice("flite", "rms", 1.04, 0.6),
    ),
    "recording-2.wav": (
        "What a lovely idea! You choose the words, and I will move my mouth.",
        Voice("espeak", "en-us+Annie", 0.95, 0.6),
    ),
}


def presenter(number: int) -> Identity:
    """Presenter `number` of the test split."""
    return sample_identity(Generator().manual_seed(FIRST_TEST_IDENTITY + number))


def portrait(identity: Identity, size: int = 320, smile: float = 0.35) -> Tensor:
    """Portrait [3, size, size] in [−1, 1], frontal with a closed mouth."""
    motion = Motion.still(1)
    motion.face[:, 4] = smile
    return render(identity, motion, size)[0]


def write_samples(folder: Path) -> None:
    """Write `samples/`, `mouth_truth.json` and `identities.png` into a folder."""
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    save_picture(portrait(presenter(37)), samples / "portrait.png")
    save_picture(portrait(presenter(29)), samples / "portrait-2.png")
    room: dict[str, Any] = {
        "backdrop": "plain",
        "backdrop_colour": rgb("9fc4d8"),
        "light_side": -0.8,
        "light_warmth": 0.4,
    }
    pair = [portrait(replace(presenter(number), **room), 160) for number in (10, 5)]
    save_picture(torch.cat(pair, -1), samples / "two-people.png")
    truth = {}
    for name, (text, voice) in RECORDINGS.items():
        utterance = speak(text, voice)
        wave = utterance.wave
        soundfile.write(samples / name, wave * (0.6 / np.abs(wave).max()), SAMPLE_RATE, subtype="PCM_16")
        # Keyed by digest, so that an edited recording is not measured against the wrong ground truth.
        digest = hashlib.sha256((samples / name).read_bytes()).hexdigest()
        truth[digest] = [round(float(opening), 3) for opening in utterance.mouth[:, 0]]
    (folder / "mouth_truth.json").write_text(json.dumps(truth) + "\n")
    write_driving_video(samples / "driving.mp4")
    sheet = torch.stack([portrait(presenter(number), 136) for number in range(24)])
    rows = [torch.cat(list(row), -1) for row in torch.split(sheet, 8)]
    save_picture(torch.cat(rows, -2), folder / "identities.png")


def save_picture(picture: Tensor, path: Path) -> None:
    """Write a picture [3, H, W] in [−1, 1] as PNG."""
    Image.fromarray(_to_uint8(picture).permute(1, 2, 0).numpy()).save(path, optimize=True)


def write_driving_video(path: Path, seconds: int = 4, rate: int = 30) -> None:
    """Write a video of a presenter who moves the head with a closed mouth, for dubbing."""
    pose, face = perform(Performance("lively", "neutral", ""), seconds * 25, np.random.default_rng(4))
    times = torch.linspace(0, seconds * 25 - 1, seconds * rate).round().long()
    motion = Motion(torch.zeros(len(times), 5), pose[times], face[times])
    with av.open(path, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "slow"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        for frame in _to_uint8(render(presenter(23), motion)).permute(0, 2, 3, 1).numpy():
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
            )
        container.mux(stream.encode(None))


def _to_uint8(pixels: Tensor) -> Tensor:
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte()


def main() -> None:
    """Write the samples into the folder named on the command line."""
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the package's `embedded` folder")
    write_samples(parser.parse_args().folder)


if __name__ == "__main__":
    main()
