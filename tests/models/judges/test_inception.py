"""FID's Inception computes what torch-fidelity's does, from a file with the same names."""

import pytest
import torch

from talkinghead_lab.models.judges.inception import Inception, resized


def seeded_inception() -> Inception:
    """With random weights that keep the activations' size."""
    network, generator = Inception(), torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name in sorted(name for name in state if not name.endswith("_tracked")):
        drawn = torch.randn(state[name].shape, generator=generator)
        if drawn.dim() > 1:
            state[name] = drawn * (2 / drawn[0].numel()) ** 0.5
        elif name.endswith("bn.weight"):
            state[name] = 1 + 0.1 * drawn
        else:
            state[name] = (1 + 0.1 * drawn).abs() if name.endswith("_var") else 0.1 * drawn
    network.load_state_dict(state)
    return network.eval()


def test_features_are_those_of_torch_fidelity():
    """The figures are those of FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 with these weights."""
    pixels = torch.randint(0, 256, (2, 3, 70, 90), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = seeded_inception()(pixels.to(torch.uint8))
    some = [1.98546, 0.013, 0.46825, 1.27413, 0.41879, 0.53809, 1.0958, 0.91559]
    assert features[0, ::256].tolist() == pytest.approx(some, abs=2e-5)
    assert features.mean(1).tolist() == pytest.approx([0.46355, 0.4596], abs=2e-5)


def test_resizing_starts_at_the_first_pixel_and_repeats_the_last():
    """TensorFlow 1: pixel i of the result lies at i · size / 299."""
    ramp = torch.arange(23.0).expand(1, 1, 23, 23)
    expected = (torch.arange(299) * 23 / 299).clamp_max(22)
    torch.testing.assert_close(resized(ramp)[0, 0, 5], expected)
