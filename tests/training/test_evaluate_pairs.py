"""The measures of pairs, taken on drawings whose mouths are known."""

import pytest
import torch

from talkinghead_lab.foundation.paths import local_file
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.training.avatar import Motion, render
from talkinghead_lab.training.dataset import ClipMaker
from talkinghead_lab.training.evaluate_pairs import PairEvaluation, pair_cases
from talkinghead_lab.training.schedule import step_generator
from talkinghead_lab.training.train_vae import to_bytes
from talkinghead_lab.training.video_sampler import EvaluationCases
from tests.training.test_pairs import monologue

FRAMES, CHUNK = 20, 13


class DrawnVideos:
    """Draws pairs whose mouths follow their voices; `deaf`, the truth of the left voice, and with a seam."""

    def __init__(self, cases: EvaluationCases, deaf: bool) -> None:
        self.voices, self.openings, self.deaf = cases.waves, cases.openings, deaf

    def videos(self, cases: EvaluationCases, params: GenerationParams) -> torch.Tensor:
        openings = torch.zeros_like(self.openings)
        for pair, voices in enumerate(cases.waves):
            for side, voice in enumerate(voices):
                for known, opening in zip(self.voices[pair], self.openings[pair], strict=True):
                    if torch.equal(voice, known):
                        openings[pair, side] = opening
        if self.deaf:
            openings = self.openings[:, :1].expand_as(openings)
        motion = Motion.stack([Motion.still(FRAMES)] * openings.shape[0] * 2)
        motion.mouth[..., 0] = openings.flatten(0, 1)
        halves = to_bytes(render(cases.identities, motion))
        if self.deaf:
            halves[:, CHUNK:] //= 2
        return torch.cat([halves[::2], halves[1::2]], dim=-1)


@pytest.mark.parametrize("deaf", [False, True])
def test_drawings_score_as_their_mouths_move(deaf):
    openings = torch.rand(400, generator=step_generator(2, 0))
    maker = ClipMaker([monologue(openings)], "test", 0, non_speech_share=0.0)
    cases = pair_cases(maker, 2, FRAMES)
    params = GenerationParams(
        image_path=local_file("sample:two-people"), audio_path="unused", chunk_frames=CHUNK
    )
    evaluation = PairEvaluation(DrawnVideos(cases, deaf), cases, params)
    means = {name: row["mean"] for name, row in evaluation.measure().items()}
    own, silent = means["pair, own voice"], means["pair, silent over speech"]
    if deaf:
        assert own < 0.7 and means["pair, other voice"] > 0.3
        assert silent > 0.9
        assert means["pair, seams"] > 3
    else:
        assert own > 0.9 and means["pair swapped, own voice"] > 0.9
        assert means["pair, other voice"] < 0.5 and means["pair swapped, other voice"] < 0.5
        assert silent < 0.1
        assert means["pair, seams"] < 3
    assert evaluation.keep["pair"].shape == (2, FRAMES, 3, 160, 320)
