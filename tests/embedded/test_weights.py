"""The shipped weights are the evaluated ones, by checksum."""

import hashlib

from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.weights.locating import EMBEDDED_WEIGHTS

SUMS = EMBEDDED_WEIGHTS / "SHA256SUMS"


def listed() -> dict[str, str]:
    rows = (line.split("  ", 1) for line in SUMS.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in rows}


def test_every_weight_file_has_its_checksum():
    files = {*EMBEDDED_WEIGHTS.rglob("*.safetensors"), *SAMPLES_FOLDER.glob("*.safetensors")}
    digests = {
        file.relative_to(EMBEDDED_WEIGHTS.parent).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }
    assert digests == listed()


def test_the_weights_are_at_most_55_mb():
    assert sum((EMBEDDED_WEIGHTS.parent / name).stat().st_size for name in listed()) <= 55e6
