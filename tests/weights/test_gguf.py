"""A transformer with its adapter in GGUF, by the public path: loaded, offloaded, planned, with a LoRA."""

import gc
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from talkinghead_lab.bench.forwards import random_latent, relative_error, velocity
from talkinghead_lab.bench.sizes import SIZES, random_conditions
from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.blocks import BlockQuantizedLinear
from talkinghead_lab.offload.requirements import NetworkSize
from talkinghead_lab.pipeline.request import load_settings
from talkinghead_lab.training.networks import build_untrained
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.transformer import load_transformer
from tests.weights.formats.gguf_files import write_gguf
from tests.weights.formats.writers import text_of_llama_cpp
from tests.weights.test_transformer import mapped_files

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def released(checkpoint) -> dict[str, torch.Tensor]:
    """Transformer and adapter of the checkpoint."""
    files = [
        *checkpoint.rglob("diffusion_pytorch_model*.safetensors"),
        *checkpoint.rglob("infinitetalk.safe*"),
    ]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def q8_0(released, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "merged.gguf", released, "Q8_0")


@pytest.fixture
def settings_for(request_for):
    """Settings of a small request with one file instead of transformer and adapter; None: as released."""

    def make(path, **changes):
        changes |= {} if path is None else {"infinitetalk_dir": str(path)}
        return load_settings(request_for(device="cpu", precision="fp32", **changes))

    return make


def test_unquantised_files_give_the_same_weights(released, settings_for, tmp_path):
    settings = settings_for(write_gguf(tmp_path / "plain.gguf", released))
    assert settings.storage is None
    state = load_transformer(settings).state_dict()
    assert state.keys() == released.keys()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in released.items())


def test_a_quantised_transformer_keeps_its_bytes(released, q8_0, settings_for):
    settings = settings_for(q8_0)
    dit, plain = load_transformer(settings), load_transformer(settings_for(None))
    layers = {name: layer for name, layer in dit.named_modules() if isinstance(layer, BlockQuantizedLinear)}
    assert {f"{name}.weight" for name in layers} == {name for name, t in released.items() if t.dim() == 2}
    assert all(layer.weight.dtype is torch.uint8 and layer.bias is not None for layer in layers.values())
    assert layers["blocks.0.ffn.0"].weight.shape == (768, 192 // 32 * 34)
    size = replace(SIZES["tiny"], dit=plain.config)
    latent = random_latent(size, CPU)
    out, expected = (velocity(each, latent, random_conditions(each, size.grid, CPU)) for each in (dit, plain))
    assert 0.0005 < relative_error(out, expected) < 0.01


def test_offloaded_it_streams_the_bytes_and_lets_go_of_the_file(q8_0, settings_for):
    settings = settings_for(q8_0)
    resident = load_transformer(settings)
    expected = {name: tensor.clone() for name, tensor in resident.state_dict().items()}
    del resident
    gc.collect()
    dit = load_transformer(replace(settings, offloaded=True))
    gc.collect()
    assert str(q8_0) not in mapped_files()
    state = dit.state_dict()
    assert state["blocks.0.ffn.0.weight"].dtype is torch.uint8
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_its_size_is_known_without_reading_it(q8_0, settings_for):
    settings = settings_for(q8_0)
    planned = checkpoints.load_network("transformer", settings.files, torch.float32, "meta")
    size = NetworkSize.of(planned, "blocks")
    assert size == NetworkSize.of(load_transformer(settings), "blocks")
    plain = NetworkSize.of(
        checkpoints.load_network("transformer", settings_for(None).files, torch.float32, "meta"), "blocks"
    )
    assert 0.25 < size.block / plain.block < 0.30


def test_a_lora_turns_its_layers_into_q8_0(released, settings_for, tmp_path):
    path = write_gguf(tmp_path / "q4.gguf", released, "Q4_0")
    down, up = torch.randn(4, 192) / 192**0.5, torch.randn(768, 4)
    lora = {"blocks.0.ffn.0.lora_down.weight": down, "blocks.0.ffn.0.lora_up.weight": up}
    save_file(lora, tmp_path / "lora.safetensors")
    settings = settings_for(path, loras=[{"path": str(tmp_path / "lora.safetensors"), "scale": 0.5}])
    dit, plain = load_transformer(settings), load_transformer(replace(settings, loras=()))
    changed, before = (network.get_submodule("blocks.0.ffn.0") for network in (dit, plain))
    assert (changed.stored_as, before.stored_as) == ("Q8_0", "Q4_0")
    assert dit.get_submodule("blocks.1.ffn.0").stored_as == "Q4_0"
    expected = before.dequantized() + 0.5 * up @ down
    assert relative_error(changed.dequantized(), expected) < 0.006


def test_a_text_encoder_keeps_its_bytes_except_for_its_embedding(request_for, checkpoint, tmp_path):
    networks = build_untrained(0)
    path = write_gguf(tmp_path / "umt5.gguf", text_of_llama_cpp(networks), "Q8_0")
    (tokenizer,) = checkpoint.rglob("tokenizer.json")
    shutil.copy(tokenizer, tmp_path)
    settings = load_settings(request_for(device="cpu", text_encoder=str(path)))
    encoder = checkpoints.load_text_encoder(settings.files, torch.bfloat16, "cpu")
    plain, layers = networks.text_encoder, dict(encoder.named_modules())
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert isinstance(layers[name], BlockQuantizedLinear)
            assert relative_error(layers[name].dequantized(), layer.weight.detach()) < 0.006
    embedding = encoder.encoder.embed_tokens.weight
    expected = plain.encoder.embed_tokens.weight.detach()
    assert embedding.dtype is torch.bfloat16
    assert 0.004 < relative_error(embedding.float(), expected) < 0.008


def test_a_file_without_a_network_of_this_model_is_refused(settings_for, tmp_path):
    path = write_gguf(tmp_path / "other.gguf", {"blk.0.attn_q.weight": torch.ones(32, 32)}, "Q8_0")
    with pytest.raises(CheckpointError, match=r"other\.gguf"):
        settings_for(path)
