"""Written checkpoints load as the networks that were written."""

import torch

from talkinghead_lab.pipeline.pipeline import Pipeline
from talkinghead_lab.training import networks
from talkinghead_lab.weights import checkpoints, locating, writing


def test_loaded_networks_equal_the_written_ones(request_for):
    written = networks.build_untrained(seed=0)
    loaded = Pipeline.load(request_for(device="cpu"))
    for name, module in written.modules().items():
        ours, theirs = module.state_dict(), getattr(loaded, name).state_dict()
        assert ours.keys() == theirs.keys()
        for tensor in ours:
            torch.testing.assert_close(theirs[tensor], ours[tensor], atol=5e-4, rtol=1e-3)
    assert loaded.dit.config == written.dit.config


def test_the_tokenizer_splits_words_and_drops_punctuation(checkpoint):
    tokenizer = checkpoints.load_tokenizer(
        locating.CheckpointFiles(checkpoint / "ckpt_dir", checkpoint, checkpoint), 64
    )
    tokens = tokenizer(["Nodding, yes!", "nodding yes", "nodding zebra"])
    assert torch.equal(tokens.ids[0], tokens.ids[1])
    assert tokens.mask.sum(dim=1).tolist() == [3, 3, 3]
    unknown = networks.vocabulary().index(writing.UNKNOWN)
    assert (tokens.ids == unknown).sum(dim=1).tolist() == [0, 0, 1]
