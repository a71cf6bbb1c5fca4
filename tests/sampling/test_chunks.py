"""The chunk plan and the audio windows, for any length of recording."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from talkinghead_lab.foundation.latent_grid import LatentGrid, is_whole_chunk, latent_frames
from talkinghead_lab.sampling.chunks import audio_windows, plan_chunks
from talkinghead_lab.sampling.seams import SeamBlend

chunk_sizes = st.integers(1, 30).map(lambda n: 4 * n + 1)
frame_counts = st.integers(1, 2000)


@st.composite
def plans(draw):
    chunk_frames = draw(chunk_sizes)
    motion_frame = 4 * draw(st.integers(0, (chunk_frames - 5) // 4)) + 1
    total = draw(frame_counts)
    return total, chunk_frames, motion_frame, plan_chunks(total, chunk_frames, motion_frame)


@given(plans())
def test_every_frame_is_delivered_once_and_in_order(plan):
    total, _, _, chunks = plan
    delivered = [chunk.start + chunk.repeated + frame for chunk in chunks for frame in range(chunk.new)]
    assert delivered == list(range(total))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))


@given(plans())
def test_a_trimmed_plan_differs_in_the_last_chunk_alone(plan):
    total, chunk_frames, motion_frame, chunks = plan
    trimmed = plan_chunks(total, chunk_frames, motion_frame, trim=True)
    assert trimmed[:-1] == chunks[:-1]
    last, whole = trimmed[-1], chunks[-1]
    assert (last.start, last.repeated, last.new) == (whole.start, whole.repeated, whole.new)
    assert is_whole_chunk(last.frames)
    assert 5 <= last.frames <= whole.frames
    assert 0 <= last.frames - last.repeated - last.new < 4 or last.frames == 5


@given(plans())
def test_a_chunk_repeats_what_the_one_before_sampled(plan):
    _, chunk_frames, motion_frame, chunks = plan
    assert chunks[0].repeated == 0
    for before, chunk in pairwise(chunks):
        assert chunk.repeated == motion_frame
        assert chunk.start == before.start + chunk_frames - motion_frame
        assert before.new == chunk_frames - before.repeated, "only the last chunk may be cut short"


@given(plans())
def test_no_chunk_is_sampled_for_nothing(plan):
    total, _, _, chunks = plan
    assert all(chunk.new >= 1 for chunk in chunks)
    assert chunks[-1].start + chunks[-1].frames >= total


@given(plans(), st.sampled_from([1, 3, 5, 7]))
def test_audio_windows_are_centred_on_their_frames(plan, window):
    total, chunk_frames, _, chunks = plan
    rows = torch.arange(total, dtype=torch.float32)[:, None, None]
    for chunk in chunks[:2] + chunks[-1:]:
        heard = audio_windows(rows, chunk, window)
        assert heard.shape == (chunk_frames, window, 1, 1)
        centres = heard[: chunk.repeated + chunk.new, window // 2, 0, 0]
        assert centres.tolist() == list(range(chunk.start, chunk.start + chunk.repeated + chunk.new))


def test_past_the_end_the_rows_run_backwards():
    rows = torch.arange(6.0)[:, None, None]
    heard = audio_windows(rows, plan_chunks(6, 9, 1)[0], 3)[:, :, 0, 0]
    assert heard.tolist() == [
        [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 5], [5, 5, 4], [5, 4, 3], [4, 3, 2],
    ]  # fmt: skip


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 20))
def test_the_step_at_a_seam_fades_and_what_moves_by_itself_stays(repeated, new, over):
    shown = torch.full((1, 3, repeated, 2, 2), 0.1)
    moving = 0.01 * torch.arange(repeated + new).view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 2)
    frames = 0.3 + moving - moving[:, :, repeated - 1 : repeated]
    eased = SeamBlend(shown[:, :, -1:], repeated, over)(frames)
    by_piece = SeamBlend(shown[:, :, -1:], repeated, over)
    pieces = [by_piece(piece, 3 * number) for number, piece in enumerate(frames.split(3, dim=2))]
    assert torch.equal(torch.cat(pieces, dim=2), eased)
    torch.testing.assert_close(eased[:, :, :repeated], frames[:, :, :repeated])
    left = (eased - frames)[0, 0, repeated:, 0, 0] / -0.2
    expected = [max(0.0, 1 - (number + 1) / (over + 1)) for number in range(new)]
    torch.testing.assert_close(left, torch.tensor(expected), atol=1e-5, rtol=0)


@given(chunk_sizes, st.integers(1, 80), st.integers(1, 80))
def test_latent_grid(frames, rows, columns):
    grid = LatentGrid(frames, 16 * rows, 16 * columns)
    _, time, height, width = grid.latent_shape(16)
    assert is_whole_chunk(frames)
    assert (time - 1) * 4 + 1 == frames
    assert latent_frames(frames) == time
    assert (height, width) == (2 * rows, 2 * columns)
    assert grid.tokens == time * rows * columns == time * grid.tokens_per_frame


def test_released_chunk_has_the_published_token_count():
    assert LatentGrid(81, 480, 832).tokens == 32_760
