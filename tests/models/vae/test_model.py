"""The video autoencoder at tiny sizes: pieces, causality, encoding of zeros, gradients, errors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from talkinghead_lab.errors import CheckpointError, InvalidRequest
from talkinghead_lab.models.vae.layers import CausalConv3d, CausalState, RMSNorm
from talkinghead_lab.models.vae.model import RELEASED_LATENT_MEAN, RELEASED_LATENT_STD, VAE, VAEConfig

TINY = VAEConfig(
    dim=4,
    z_dim=3,
    stage_dims=(4, 6, 8, 8),
    num_res_blocks=1,
    temporal_downsample=(False, True, True),
    latent_mean=(0.3, -0.2, 1.0),
    latent_std=(2.0, 0.5, 1.5),
)


def build(config: VAEConfig = TINY) -> VAE:
    torch.manual_seed(1)
    model = VAE(config)
    for name, parameter in model.named_parameters():
        # Attention is initialised to have no effect.
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def video(frames: int, height: int = 16, width: int = 24, seed: int = 2) -> Tensor:
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)).clamp(
        -1, 1
    )


def latent(frames: int, seed: int = 3) -> Tensor:
    return torch.randn(1, 3, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> VAE:
    return build()


def test_shapes(model: VAE):
    assert model.encode(video(1)).shape == (1, 3, 1, 2, 3)
    assert model.encode(video(17)).shape == (1, 3, 5, 2, 3)
    assert model.decode(latent(1)).shape == (1, 3, 1, 16, 24)
    assert model.decode(latent(5)).shape == (1, 3, 17, 16, 24)
    assert [piece.shape[2] for piece in model.decode_pieces(latent(6), 2)] == [5, 8, 8]


@pytest.mark.parametrize(("channels", "stacks_outputs"), [(7, True), (24, True), (16, False), (32, False)])
def test_a_convolution_of_stacked_channels_equals_the_3d_convolution(channels, stacks_outputs):
    torch.manual_seed(11)
    layer = CausalConv3d(5, channels, (3, 3, 3))
    assert layer.stacked_fill_registers == stacks_outputs
    x = torch.randn(2, 5, 4, 6, 8)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 2, 0))
    expected = torch.nn.functional.conv3d(padded, layer.weight, layer.bias, padding=(0, 1, 1))
    torch.testing.assert_close(layer(x, {}), expected, rtol=1e-4, atol=1e-5)
    state: CausalState = {}
    frames = [layer(frame, state) for frame in x.split(1, dim=2)]
    torch.testing.assert_close(torch.cat(frames, dim=2), expected, rtol=1e-4, atol=1e-5)


def test_the_norm_has_a_gradient_at_zero():
    norm, x = RMSNorm(4), torch.zeros(1, 4, 1, 2, 2, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    scaled = norm(torch.full((1, 4, 1, 2, 2), -3.0))
    torch.testing.assert_close(scaled, torch.full((1, 4, 1, 2, 2), -1.0))


@pytest.mark.parametrize("latents_per_piece", [2, 3, 100])
def test_the_piece_size_does_not_change_the_result(model: VAE, latents_per_piece: int):
    torch.testing.assert_close(model.encode(video(29), latents_per_piece), model.encode(video(29)))
    torch.testing.assert_close(model.decode(latent(7), latents_per_piece), model.decode(latent(7)))


@pytest.mark.parametrize("frame", [0, 1, 8, 13])
def test_a_latent_does_not_depend_on_later_frames(model: VAE, frame: int):
    before, changed = model.encode(video(17)), video(17)
    changed[:, :, frame] += 0.5
    after, first_changed = model.encode(changed), (frame + 3) // 4
    assert torch.equal(after[:, :, :first_changed], before[:, :, :first_changed])
    assert (after[:, :, first_changed] - before[:, :, first_changed]).abs().max() > 1e-4


@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_frame_does_not_depend_on_later_latents(model: VAE, position: int):
    before, changed = model.decode(latent(5)), latent(5)
    changed[:, :, position] += 0.5
    after, first_changed = model.decode(changed), max(0, 4 * position - 3)
    assert torch.equal(after[:, :, :first_changed], before[:, :, :first_changed])
    assert (after[:, :, first_changed] - before[:, :, first_changed]).abs().max() > 1e-4


@pytest.mark.parametrize("frames", [1, 5, 81, 161])
def test_the_shortcut_for_an_image_and_zeros_equals_the_full_encode(model: VAE, frames: int):
    image = video(1)[:, :, 0]
    full = torch.zeros(1, 3, frames, 16, 24)
    full[:, :, 0] = image
    encoded = model.encode_first_frame_then_zeros(image, frames)
    assert torch.equal(encoded, model.encode(full))
    longer = model.encode_first_frame_then_zeros(image, frames + 8)
    assert torch.equal(encoded, longer[:, :, : encoded.shape[2]]), "a prefix of the longer encode"


def test_encoding_processes_one_frame_at_a_time_at_full_resolution(model: VAE):
    frames = []
    first = model.encoder.downsamples[0]
    hook = first.register_forward_hook(lambda layer, inputs, _: frames.append(inputs[0].shape[2]))
    model.encode(video(9))
    assert frames == [1] * 9
    hook.remove()


def test_decoding_processes_one_frame_at_a_time_at_full_resolution(model: VAE):
    """So decoding takes the memory of one frame, not of the four that a latent frame holds."""
    frames = []
    head = model.decoder.head
    hook = head.register_forward_hook(lambda layer, inputs, _: frames.append(inputs[0].shape[2]))
    in_one_piece = torch.cat(list(model.decode_pieces(latent(3), 3)), dim=2)
    assert frames == [9]
    torch.testing.assert_close(model.decode(latent(3)), in_one_piece)
    assert frames[1:] == [1] * 9
    hook.remove()


def test_layers_with_constant_output_are_not_run_again(model: VAE):
    frames = dict.fromkeys(model.encoder.layers(), 0)

    def count(layer, inputs, _):
        frames[layer] += inputs[0].shape[2]

    hooks = [layer.register_forward_hook(count) for layer in frames]
    model.encode_first_frame_then_zeros(video(1)[:, :, 0], 401)
    for hook in hooks:
        hook.remove()
    counts, frames_joined = [], 1
    for layer, processed in frames.items():
        counts.append(processed * frames_joined)
        if getattr(layer, "time_conv", None) is not None:
            frames_joined *= 2
    assert counts[0] == 4, "the image, zeros that change the state, zeros that do not"
    assert counts == sorted(counts), "outputs become constant from the first layer on"
    assert counts[-1] < 160, "of 401"


def test_interleaved_calls_do_not_affect_each_other(model: VAE):
    alone = [model.decode(latent(3, seed)) for seed in (1, 2)]
    one, two = (model.decode_pieces(latent(3, seed)) for seed in (1, 2))
    pairs = list(zip(one, two, strict=True))
    for i in range(2):
        assert torch.equal(torch.cat([pair[i] for pair in pairs], dim=2), alone[i])


def test_the_state_does_not_grow_with_the_frames(model: VAE):
    def state_after(pieces: int) -> CausalState:
        state: CausalState = {}
        for frames in [1] + [4] * pieces:
            model.encoder(video(frames), state)
        return state

    def shapes(state: CausalState) -> dict[torch.nn.Module, list[torch.Size]]:
        return {layer: [frame.shape for frame in past] for layer, past in state.items()}

    few, many = state_after(2), state_after(9)
    assert shapes(few) == shapes(many)
    for layer, past in many.items():
        assert len(past) <= 2
        for frame in past:
            assert frame.shape[2] == 1
            assert frame.untyped_storage().nbytes() == frame.nbytes, f"{layer} keeps the full piece allocated"


def test_normalise_and_denormalise_use_the_statistics(model: VAE):
    mean, log_variance = model.posterior(video(5))
    assert mean.shape == log_variance.shape == (1, 3, 2, 2, 3)
    expected = torch.stack([(mean[:, c] - TINY.latent_mean[c]) / TINY.latent_std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model.encode(video(5)), expected)
    torch.testing.assert_close(model.denormalise(model.normalise(mean)), mean)


def test_frames_are_clamped_by_default(model: VAE):
    far = 100 * latent(2)
    raw = torch.cat(list(model.decode_pieces(far, clamp=False)), dim=2)
    assert raw.abs().max() > 1
    assert torch.equal(model.decode(far), raw.clamp(-1, 1))


def test_gradients_reach_every_weight():
    model = build().train().requires_grad_(True)
    clip = video(9)
    mean, log_variance = model.posterior(clip, latents_per_piece=3)
    sample = mean + (log_variance / 2).exp() * torch.randn(
        mean.shape, generator=torch.Generator().manual_seed(4)
    )
    frames = torch.cat(list(model.decode_pieces(model.normalise(sample), 3, clamp=False)), dim=2)
    ((frames - clip).square().mean() + log_variance.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_do_not_depend_on_the_piece_size():
    def gradient(latents_per_piece: int) -> Tensor:
        model = build().requires_grad_(True)
        frames = torch.cat(list(model.decode_pieces(latent(4), latents_per_piece, clamp=False)), dim=2)
        frames.square().mean().backward()
        return model.decoder.conv1.weight.grad

    assert (gradient(1) - gradient(4)).norm() / gradient(4).norm() < 1e-4


def test_bfloat16_weights():
    """bfloat16 has 8 significant bits; norms are computed in float32, and results are float32."""
    full, half = build(), build().to(torch.bfloat16)
    for out, reference in (
        (half.encode(video(9)), full.encode(video(9))),
        (half.decode(latent(3)), full.decode(latent(3))),
    ):
        assert out.dtype == torch.float32
        assert (out - reference).norm() / reference.norm() < 0.03


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, num_res_blocks=2, stage_dims=(6, 4), temporal_downsample=(True,)),
        replace(TINY, dim=5, stage_dims=(4, 8, 2), temporal_downsample=(False, False)),
        VAEConfig(
            dim=2,
            z_dim=16,
            stage_dims=(2, 4),
            num_res_blocks=1,
            temporal_downsample=(True,),
            latent_mean=RELEASED_LATENT_MEAN,
            latent_std=RELEASED_LATENT_STD,
        ),
    ],
)
def test_sizes_are_read_from_the_tensors(config: VAEConfig):
    shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    statistics = {"latent_mean": list(config.latent_mean), "latent_std": list(config.latent_std)}
    assert VAEConfig.from_tensors(shapes, statistics) == config
    step, pixels = config.frames_per_latent, config.pixels_per_latent
    clip = video(1 + 2 * step, 2 * pixels, 3 * pixels)
    encoded = build(config).encode(clip)
    assert encoded.shape == (1, config.z_dim, 3, 2, 3)
    assert build(config).decode(encoded).shape == clip.shape


def test_released_statistics_are_the_default_for_16_channels_only():
    shapes = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"latent_mean.*16 numbers; allowed: 3 numbers"):
        VAEConfig.from_tensors(shapes, {})


def test_tensors_of_other_networks_are_named_in_errors():
    shapes = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    statistics = {"latent_mean": TINY.latent_mean, "latent_std": TINY.latent_std}
    incomplete = {name: shape for name, shape in shapes.items() if name != "conv2.weight"}
    with pytest.raises(CheckpointError, match=r"`conv2\.weight`.*missing"):
        VAEConfig.from_tensors(incomplete, statistics)
    with pytest.raises(CheckpointError, match=r"`conv2\.weight`.*shape \(3, 3\); allowed: 5 dimensions"):
        VAEConfig.from_tensors(shapes | {"conv2.weight": (3, 3)}, statistics)
    cut = {name: shape for name, shape in shapes.items() if not name.startswith("encoder.downsamples.6.")}
    with pytest.raises(CheckpointError, match=r"stage 3 of `encoder\.downsamples`"):
        VAEConfig.from_tensors(cut, statistics)


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 16, 24), (1, 3, 5, 16, 20), (1, 3, 0, 16, 24), (1, 1, 5, 16, 24), (3, 5, 16, 24)]
)
def test_a_video_of_unsuitable_size_is_refused(model: VAE, shape: tuple[int, ...]):
    with pytest.raises(InvalidRequest, match=r"F = 4n \+ 1, H and W multiples of 8"):
        model.encode(torch.zeros(shape))


def test_other_invalid_arguments(model: VAE):
    with pytest.raises(InvalidRequest, match=r"\[B, 3, T, h, w\]"):
        model.decode(torch.zeros(1, 4, 2, 2, 3))
    with pytest.raises(InvalidRequest, match="latents_per_piece"):
        model.encode(video(5), latents_per_piece=0)
    with pytest.raises(InvalidRequest, match="latents_per_piece"):
        model.decode(latent(2), latents_per_piece=0)
    for image, frames in ((video(1)[:, :, 0], 80), (video(1)[:, :, 0], -3), (video(1)[0, :, 0], 81)):
        with pytest.raises(InvalidRequest, match="F = 4n"):
            model.encode_first_frame_then_zeros(image, frames)
