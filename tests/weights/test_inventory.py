"""The inventory finds broken networks."""

import os

from talkinghead_lab.params import GenerationParams
from talkinghead_lab.weights.inventory import inventory
from tests.parity import golden


def test_the_inventory_tells_complete_networks_from_broken_ones(tmp_path):
    files = golden.write_checkpoint(tmp_path)
    (tmp_path / "wav2vec_dir").mkdir()
    request = GenerationParams(
        audio_path="a",
        image_path="b",
        checkpoint="released",
        ckpt_dir=str(files.wan),
        wav2vec_dir=str(tmp_path / "wav2vec_dir"),
        infinitetalk_dir=str(files.infinitetalk),
    )
    states = {row["network"]: row["state"] for row in inventory("released", 1, request.weight_sources)}
    assert states["transformer"] == states["video autoencoder"] == "complete"
    assert "no such weight file" in states["speech encoder"]
    os.truncate(files.infinitetalk, 1000)
    states = {row["network"]: row["state"] for row in inventory("released", 1, request.weight_sources)}
    assert "damaged" in states["transformer"]
