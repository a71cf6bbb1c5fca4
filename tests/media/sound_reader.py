"""A process that reads the sound files named on its standard input and prints one line of JSON for each."""

import json
import resource
import sys
import traceback

import numpy as np

from talkinghead_lab.errors import MediaError
from talkinghead_lab.media.audio import read_recording

MEMORY = 6 * 2**30
LONGEST = 600  # seconds; headers that lie about time cost less than with the limit of the package


def outcome(path):
    """What reading a file gives, in words; None: as it should be."""
    try:
        recording = read_recording(path, max_seconds=LONGEST)
    except MediaError:
        return {"refused": True}
    except BaseException:
        return {"wrong": traceback.format_exc()}
    speech, sound = recording.speech, recording.soundtrack
    seconds = sound.shape[1] / 48_000
    wrong = [
        name
        for name, holds in {
            "finite": np.isfinite(speech).all() and np.isfinite(sound).all(),
            "types": speech.dtype == sound.dtype == np.float32,
            "shapes": speech.ndim == 1 and sound.ndim == 2 and len(sound) in (1, 2),
            "equally long": 3 * (len(speech) - 1) < sound.shape[1] <= 3 * len(speech),
            "within the limits": 0.04 <= seconds <= LONGEST,
        }.items()
        if not holds
    ]
    return {"wrong": f"not {wrong}"} if wrong else {"seconds": seconds}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        print(json.dumps(outcome(line.rstrip("\n"))), flush=True)
