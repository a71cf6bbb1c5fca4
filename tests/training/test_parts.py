"""Parts of the training: resumable schedules, optimisers, embeddings, examples, LoRA, scores."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from talkinghead_lab.sampling.config import SamplingConfig
from talkinghead_lab.sampling.guidance import CONDITIONAL, DROP_TEXT, UNCONDITIONAL, Guidance
from talkinghead_lab.training import scores, train_lora
from talkinghead_lab.training.avatar import Motion, render, sample_identity
from talkinghead_lab.training.data import (
    AUDIO_DROPPED,
    AUDIO_VARIANTS,
    BOTH_DROPPED,
    CHUNKS,
    NARRATED_SHARE,
    VIDEO_FRAMES,
    EncodedVideos,
)
from talkinghead_lab.training.muon import LayerMuon, layer_weights
from talkinghead_lab.training.networks import build_untrained
from talkinghead_lab.training.schedule import Budget, NetworkTraining, learning_rate, step_generator
from talkinghead_lab.training.train import TrainingSettings
from talkinghead_lab.training.train_speech import embed, interpolate
from talkinghead_lab.weights.lora import merge_lora


@pytest.fixture(scope="module")
def networks():
    return build_untrained(seed=1)


class Interrupted(Exception):
    """A training stopped before its end."""


def fit_sum(folder=None, stop_before=None) -> tuple[nn.Sequential, NetworkTraining]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    peaks = {"peak": 0.05, "matrix_peak": 0.05}
    run = NetworkTraining(
        "sum", nn.ModuleList([layers]), Budget(12), **peaks, folder=folder, seconds_between_saves=0.0
    )
    x = torch.zeros(8, 3)
    advance = run.captured(lambda: {"loss": (layers(x) - x.sum(dim=1, keepdim=True)).square().mean()})
    for step in run.steps():
        if step == stop_before:
            raise Interrupted
        x.copy_(torch.randn(8, 3, generator=step_generator(1, step)))
        run.after_step(step, **advance())
    return layers, run


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path):
    uninterrupted, _ = fit_sum()
    with pytest.raises(Interrupted):
        fit_sum(tmp_path, stop_before=7)
    resumed, run = fit_sum(tmp_path)
    assert run.first_step == 7
    for name, value in uninterrupted.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=0, rtol=0)


def test_muon_steps_along_orthogonal_matrices():
    matrices = torch.randn(3, 6, 20, generator=step_generator(2, 0))
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((6, 20), (20, 6), (6, 5, 2, 2))]
    gradients = (matrices[0], matrices[1].mT, matrices[2].view(6, 5, 2, 2))
    rate = torch.tensor(0.1)
    optimizer = LayerMuon(weights, rate, weight_decay=0.0)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    values = torch.linalg.svdvals(torch.stack([weights[0], weights[1].mT, weights[2].flatten(1)]))
    # The coefficients trade exactness for speed: singular values end interpolate 0.7 and 1.2.
    size = 0.1 * 0.2 * 20**0.5
    assert values.min() > 0.6 * size
    assert values.max() < 1.3 * size
    for weight in weights:
        # Liu et al.: an update has about 0.2 of root mean square, as AdamW's.
        assert weight.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.3)


def test_muon_shrinks_weights_and_follows_its_rate_tensor():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = LayerMuon([weight], torch.tensor(0.5), weight_decay=0.1)
    optimizer.param_groups[0]["lr"].fill_(0.25)
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 1 - 0.25 * 0.1))


def test_the_average_starts_short_and_counts_the_initial_weights():
    layer = nn.Linear(2, 2)
    run = NetworkTraining("average", nn.ModuleList([layer]), Budget(3), peak=0.1, decay=0.15)
    expected = layer.weight.detach().clone()
    for step, decay in enumerate((0.1, 0.15, 0.15)):
        layer.weight.data.add_(1)
        run.after_step(step, loss=torch.zeros(()))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    run.use_average()
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_muon_trains_layer_weights_only():
    modules = nn.ModuleList([nn.Linear(4, 4), nn.Embedding(5, 4), nn.Conv3d(2, 2, 3), nn.LayerNorm(4)])
    assert [weight.shape for weight in layer_weights(modules)] == [(4, 4), (2, 2, 3, 3, 3)]


def test_interpolation_is_exact_far_into_a_long_track():
    track = torch.arange(60_000_000) % 7
    start, times = torch.tensor([[59_999_000]]), torch.tensor([[0.0, 1.25, 2.5]])
    first = (59_999_000 + torch.arange(4)) % 7
    wanted = torch.lerp(first[[0, 1, 2]].float(), first[[1, 2, 3]].float(), torch.tensor([0.0, 0.25, 0.5]))
    torch.testing.assert_close(interpolate(track, start, times)[0], wanted)


def test_the_learning_rate_warms_up_then_decays_to_a_hundredth():
    rates = [learning_rate(progress, 0.1) for progress in (0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.505, 0.01])


def test_a_budget_ends_by_steps_or_by_seconds():
    budget = Budget(steps=100, seconds=10.0)
    assert budget.progress(50, 1.0) == 0.5
    assert budget.progress(50, 8.0) == 0.8


def test_batched_embeddings_equal_those_of_inference(networks):
    waves = torch.randn(2, 20 * 640, generator=step_generator(0, 0)) * 0.1
    both = embed(networks.speech_encoder, waves, 20)
    for wave, row in zip(waves, both, strict=True):
        alone = networks.speech_encoder(wave, 20)
        assert ((row - alone).norm() / alone.norm()).item() < 1e-4


def test_a_video_has_two_chunks_with_overlap_frames():
    assert [(chunk.start, chunk.repeated) for chunk in CHUNKS] == [(0, 0), (72, 9)]
    assert sum(chunk.new for chunk in CHUNKS) == VIDEO_FRAMES


@torch.no_grad()
def test_the_lora_file_merges_to_the_trained_weights(tmp_path):
    trained, merged = (build_untrained(seed=1).dit for _ in range(2))
    updates = train_lora.add_low_rank(trained, seed=2)
    for number, update in enumerate(updates.values()):
        update.up.normal_(std=0.05, generator=step_generator(3, number))
    train_lora.save_low_rank(updates, tmp_path / "lora.safetensors")
    assert merge_lora(merged, tmp_path / "lora.safetensors", 1.0) == len(updates)
    for name in updates:
        ours, theirs = trained.get_submodule(name).weight, merged.get_submodule(name).weight
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=1e-3)


def numbered_videos() -> EncodedVideos:
    """Four videos whose tensors contain their number; the last one is not speech."""
    numbers = torch.arange(4.0)

    def filled(*shape: int) -> torch.Tensor:
        return numbers.view(-1, *[1] * len(shape)).expand(-1, *shape)

    tokens = torch.zeros(4, 2, dtype=torch.long)
    return EncodedVideos(
        portraits=torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        conditions=filled(1, 21, 2, 2),
        chunks=filled(2, 1, 21, 2, 2),
        motions=100 + filled(1, 3, 2, 2),
        talking=numbers < 3,
        speech=1 + filled(AUDIO_VARIANTS, VIDEO_FRAMES, 1, 1),
        **dict.fromkeys(("ids", "mask", "dropped_ids", "dropped_mask"), tokens),
    )


def test_some_examples_have_the_audio_of_another_speaker():
    batch = numbered_videos().draw(2000, step_generator(6, 0), window=5, narrated=True)
    video_number, audio_number = batch.latent[:, 0, 10, 0, 0], batch.windows[:, 0, 40, 2, 0, 0]
    talking, no_audio = video_number < 3, audio_number == 0
    assert no_audio.float().mean().item() == pytest.approx(AUDIO_DROPPED + BOTH_DROPPED, abs=0.03)
    exchanged = (audio_number != video_number + 1)[talking & ~no_audio].float().mean().item()
    assert exchanged == pytest.approx(NARRATED_SHARE * 2 / 3, abs=0.04), (
        "a third of the exchanges pick the same voice"
    )
    assert audio_number[talking].max() <= 3, "exchanged audio is always speech"
    assert torch.equal(audio_number[~talking & ~no_audio], video_number[~talking & ~no_audio] + 1)


def test_distillation_uses_the_own_audio_and_starts_later_chunks_as_at_inference():
    batch = numbered_videos().draw(200, step_generator(7, 0), window=5, drops=False)
    video_number = batch.latent[:, 0, 10, 0, 0]
    assert torch.equal(batch.windows[:, 0, 40, 2, 0, 0], video_number + 1)
    later = batch.given[:, 0, 2, 0, 0]
    assert 50 < later.sum() < 150
    assert (batch.motion[later, :, :3] > 90).all()
    assert (batch.motion[~later, :, :3] < 90).all()


def test_the_distillation_target_equals_the_guidance_of_sampling():
    batch = numbered_videos().draw(4, step_generator(8, 0), window=5, drops=False)
    batch = batch.with_text(batch.ids + 1, batch.mask)
    noisy = torch.randn(batch.latent.shape, generator=step_generator(4, 0))
    examples = SimpleNamespace(batch=batch, videos=numbered_videos())
    examples.velocity = lambda noisy, one: noisy * one.ids.float().mean() + one.windows.mean()
    audio = batch.windows.mean()
    expected = Guidance(SamplingConfig(1, 1.0, train_lora.TEXT_SCALE, train_lora.AUDIO_SCALE)).combine(
        {CONDITIONAL: noisy + audio, DROP_TEXT: audio, UNCONDITIONAL: torch.zeros(())}
    )
    torch.testing.assert_close(train_lora.guided(examples, noisy), expected)


def test_correlation_is_highest_at_the_true_lag():
    truth = torch.rand(1, 100, generator=step_generator(5, 0))
    late = scores.correlations_at_lags(truth.roll(2, dims=1), truth)
    assert late.argmax(dim=1).item() - scores.LARGEST_LAG == 2
    assert late.max().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        # Sharma, Wu and Dalal (2005), table 1, pairs 1, 17 and 25.
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ],
)
def test_color_difference_gives_the_published_values(first, second, difference):
    out = scores.color_difference(torch.tensor(first), torch.tensor(second))
    assert out.item() == pytest.approx(difference, abs=1e-4)


def test_identity_scores_high_for_the_same_presenter_only():
    same, other = (sample_identity(torch.Generator().manual_seed(seed)) for seed in (3, 4))
    motion = Motion.still(1)
    motion.pose[:, 0], motion.mouth[:, 0] = 5.0, 0.4
    video = ((render(same, motion, 160) + 1) * 127.5).round().byte()[None]
    own, others = (scores.identity_psnr(video, [who], moments=(0,)).item() for who in (same, other))
    assert own > 32
    assert others < 20


def test_a_jump_between_chunks_is_measured_as_in_a_run():
    video = torch.arange(20, dtype=torch.uint8).view(1, 20, 1, 1, 1).repeat(1, 1, 3, 4, 4)
    assert scores.seam_jumps(video, 10) == pytest.approx([1.0])
    video[:, 10:] += 3
    assert scores.seam_jumps(video, 10) == pytest.approx([4.0])
    assert math.isnan(scores.seam_jumps(torch.zeros_like(video), 10)[0])


def test_settings_are_said_in_words():
    found = TrainingSettings(lora=Budget(500, 60.0)).in_words()
    assert found["LoRA for fast sampling"] == "500 steps, at most 60 s"
    assert found["Speech encoder"] == "2400 steps, batch size 48"
    assert not [text for text in found.values() if "(" in text or "inf" in text]
