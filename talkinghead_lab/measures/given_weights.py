"""Weights of measuring networks that users supply: a variable names the file, its digest tells which."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.digests import known_sha256


@dataclass(frozen=True)
class GivenWeights:
    """A file that the user supplies.

    Args:
        variable: environment variable that names it.
        file: what it should be, for messages.
        digests: SHA-256 of the files that give comparable figures; empty: any file may be used.
    """

    variable: str
    file: str
    digests: tuple[str, ...] = ()

    def path(self) -> Path:
        """The file.

        Raises:
            CheckpointError: the variable is not set, or names no file, or one with another digest.
        """
        named = os.environ.get(self.variable)
        if not named or not Path(named).is_file():
            raise CheckpointError(
                f"{self.variable} names no file" if named else f"the variable {self.variable} is not set",
                received=named or None,
                remedy=f"Set it to {self.file}.",
            )
        self._check(known_sha256(Path(named)), named)
        return Path(named)

    def digest(self) -> str | None:
        """SHA-256 of the file; None: the variable is not set.

        Raises:
            CheckpointError: as for `path`.
        """
        return known_sha256(self.path()) if os.environ.get(self.variable) else None

    def checked_bytes(self) -> bytes:
        """The file's bytes, hashed as they are returned: for formats that may run code when they are loaded.

        Raises:
            CheckpointError: as for `path`.
        """
        content = self.path().read_bytes()
        self._check(hashlib.sha256(content).hexdigest(), str(self.path()))
        return content

    def _check(self, digest: str, named: str) -> None:
        if self.digests and digest not in self.digests:
            raise CheckpointError(
                f"{self.variable} names other weights than those that figures are published with",
                received=f"{named} with the digest {digest[:12]}…",
                allowed=f"{self.file}, {', '.join(f'{known[:12]}…' for known in self.digests)}",
                remedy=f"Set {self.variable} to that file, or unset it.",
            )


LANDMARKER = GivenWeights("FACE_LANDMARKER", "face_landmarker.task of MediaPipe's FaceLandmarker")
SYNCNET = GivenWeights(
    "SYNCNET_MODEL",
    "SyncNet's released syncnet_v2.model",
    ("961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",),
)
S3FD_FACES = GivenWeights(
    "S3FD_MODEL",
    "SyncNet's released sfd_face.pth",
    ("d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491",),
)
ARCFACE = GivenWeights(
    "ARCFACE_MODEL",
    "InsightFace's w600k_r50.onnx (of buffalo_l) or glintr100.onnx (of antelopev2)",
    (
        "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
        "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
    ),
)
CLIP = GivenWeights(
    "CLIP_MODEL",
    "model.safetensors in the folder of openai/clip-vit-large-patch14",
    ("a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",),
)
INCEPTION = GivenWeights(
    "INCEPTION_MODEL",
    "torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
    ("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",),
)
I3D = GivenWeights(
    "I3D_MODEL",
    "i3d_torchscript.pt of StyleGAN-V's evaluation",
    ("bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",),
)
GIVEN_WEIGHTS = (LANDMARKER, SYNCNET, S3FD_FACES, ARCFACE, CLIP, INCEPTION, I3D)


def given_digests() -> dict[str, str]:
    """SHA-256 of every file that the user supplies, by variable.

    Raises:
        CheckpointError: a variable names no file, or a wrong one.
    """
    found = {weights.variable: weights.digest() for weights in GIVEN_WEIGHTS}
    return {variable: digest for variable, digest in found.items() if digest is not None}
