"""Decoding a chunk: pieces are gathered and finished, half precision is left where it does not suffice."""

from pathlib import Path

import pytest
import torch

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.media.frame_size import fit
from talkinghead_lab.media.pixels import to_unit_range
from talkinghead_lab.media.reference import open_reference
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.request import checkpoint_files
from talkinghead_lab.sampling.decoding import decode_chunk
from talkinghead_lab.weights import checkpoints
from tests.models.vae.test_model import build, latent

PARAMS = Path(__file__).parents[2] / "params"


def test_pieces_are_finished_and_gathered():
    vae = build()
    seen: list[torch.Tensor] = []
    frames = decode_chunk(vae, latent(3), lambda piece, start: piece / (start + 1), seen.append)
    divisors = torch.tensor([1] + 4 * [2] + 4 * [6])[:, None, None]
    assert torch.equal(frames, vae.decode(latent(3))[0] / divisors)
    assert [piece.shape[1] for piece in seen] == [1, 4, 4]
    assert torch.equal(torch.cat(seen, dim=1), frames)


@torch.inference_mode()
def test_half_precision_is_nearer_than_a_step_of_eight_bits():
    files = checkpoint_files(GenerationParams.from_yaml(PARAMS / "embedded.yaml"))
    vae = checkpoints.load_vae(files, torch.float32, "cpu")
    picture = open_reference(local_file("sample:portrait")).frame_at(0.0)
    known = vae.encode_first_frame_then_zeros(to_unit_range(fit(picture, 96, 96))[None], 9)
    expected = vae.decode(known)
    half = vae.set_decoder_dtype(torch.float16).decode(known)
    assert vae.encoder.conv1.weight.dtype == torch.float32
    assert 0 < (half - expected).abs().max() < 1 / 255


def test_what_fp16_cannot_hold_is_decoded_in_fp32(caplog):
    vae = build()
    # Norms take the size out again, so that frames are frames.
    vae.conv2.weight.data *= 6e4 / vae.conv2.weight.abs().max()
    expected = decode_chunk(vae, latent(3))
    assert not caplog.records
    frames = decode_chunk(vae.set_decoder_dtype(torch.float16), latent(3))
    assert "decoding again in fp32" in caplog.text
    torch.testing.assert_close(frames, expected, rtol=0, atol=1 / 255)


def test_no_numbers_are_no_frames():
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        decode_chunk(build(), latent(3) * torch.nan)
