"""The text encoder at tiny sizes: tokenisation, padding, names, quantised weights, errors."""

import logging
import lzma

import pytest
import torch
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import models, pre_tokenizers, processors

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.encoders.text import (
    TextEncoder,
    TextEncoderConfig,
    Tokenizer,
    clean,
    from_released,
)
from talkinghead_lab.models.quantized.rows import RowQuantizedLinear
from talkinghead_lab.weights.quantization import quantize_linears

TINY = TextEncoderConfig(
    vocab_size=12, dim=16, head_dim=6, num_heads=2, ffn_dim=20, num_layers=2, num_buckets=8, max_distance=16
)
WORDS = ["<pad>", "</s>", "<unk>", "a", "person", "talks", "to", "the", "camera", "slowly", "and", "smiles"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a word-level tokenizer that, like umT5's, ends each text with </s>."""
    file = TokenizerFile(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    file.add_special_tokens(["<pad>", "</s>", "<unk>"])
    file.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    file.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture(scope="module")
def model() -> TextEncoder:
    torch.manual_seed(5)
    return TextEncoder(TINY).eval().requires_grad_(False)


def released_names(model: TextEncoder) -> dict[str, torch.Tensor]:
    """The weights of a model under the names of the released file."""
    layers = {
        "layer.0.layer_norm": "norm1",
        "layer.0.SelfAttention.q": "attn.q",
        "layer.0.SelfAttention.k": "attn.k",
        "layer.0.SelfAttention.v": "attn.v",
        "layer.0.SelfAttention.o": "attn.o",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.1.layer_norm": "norm2",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
    }
    names = {"encoder.embed_tokens": "token_embedding", "encoder.final_layer_norm": "norm"}
    for block in range(model.config.num_layers):
        names |= {f"encoder.block.{block}.{ours}": f"blocks.{block}.{name}" for ours, name in layers.items()}
    return {f"{names[name.rpartition('.')[0]]}.weight": t for name, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a   person\n\ttalks ", "a person talks"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("&lt;smile&gt;", "<smile>"),
        ("schÃ¶n", "schön"),
        ("", ""),
    ],
)
def test_texts_are_cleaned(text: str, cleaned: str):
    assert clean(text) == cleaned


def test_rows_are_padded_to_the_text_length(folder):
    tokens = Tokenizer(folder, text_len=6)(["a person talks", ""])
    assert tokens.ids.tolist() == [[3, 4, 5, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert tokens.mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert tokens.dropped == (0, 0)


def test_a_tokenizer_may_be_a_file_also_compressed(folder, tmp_path):
    file, packed = folder / "tokenizer.json", tmp_path / "tokenizer.json.xz"
    packed.write_bytes(lzma.compress(file.read_bytes()))
    for source in (file, packed):
        assert Tokenizer(source, text_len=4)(["a person"]).ids.tolist() == [[3, 4, 1, 0]]


def test_a_truncated_text_keeps_its_closing_token_and_is_reported(folder):
    words = 10_000 * ["a", "person"]
    tokens = Tokenizer(folder, text_len=4)([" ".join(words), "a person talks"])
    assert tokens.ids.tolist() == [[3, 4, 3, 1], [3, 4, 5, 1]]
    assert tokens.dropped == (len(words) - 3, 0)


def test_encode_logs_truncation(folder, model, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = model.encode(["a person talks to the camera", "smiles"], Tokenizer(folder, 4))
    assert first.shape == (4, TINY.dim)
    assert second.shape == (2, TINY.dim)
    assert [record.getMessage() for record in caplog.records] == [
        "A prompt exceeds the limit by 3 tokens (limit: 4); its end is dropped: a person talks to the camera…"
    ]


def test_padding_and_other_texts_do_not_change_a_text(folder, model):
    texts = ["a person talks to the camera", "", "smiles"]
    together = model.encode(texts, Tokenizer(folder, 20))
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(model.encode([text], Tokenizer(folder, 7))[0], row)


def test_released_names_are_all_mapped(model):
    released = released_names(model)
    config = TextEncoderConfig.from_tensors(
        {name: tuple(t.shape) for name, t in released.items()}, {"max_distance": 16}
    )
    assert config == TINY
    mapped = from_released(released, config)
    assert mapped.keys() == model.state_dict().keys()
    assert all(mapped[name].data_ptr() == tensor.data_ptr() for name, tensor in model.state_dict().items())


def test_unknown_names_are_kept(model):
    odd = {"blocks.0.cross_attn.q.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert from_released(odd, TINY) == odd


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_give_the_states_of_their_dequantised_values(model, stored: torch.dtype):
    quantised, plain = TextEncoder(TINY).eval(), TextEncoder(TINY).eval()
    quantised.load_state_dict(model.state_dict())
    quantize_linears(quantised, stored)
    weights = model.state_dict()
    for name, layer in quantised.named_modules():
        if isinstance(layer, RowQuantizedLinear):
            weights[f"{name}.weight"] = layer.dequantized()
    plain.load_state_dict(weights)
    ids, mask = torch.arange(10)[None], torch.ones(1, 10, dtype=torch.long)
    torch.testing.assert_close(quantised(ids, mask)[0], plain(ids, mask)[0], rtol=1e-4, atol=1e-5)


def test_files_of_other_networks_are_refused(model):
    shapes = {name: tuple(tensor.shape) for name, tensor in released_names(model).items()}
    incomplete = {name: shape for name, shape in shapes.items() if name != "token_embedding.weight"}
    with pytest.raises(CheckpointError, match=r"`token_embedding\.weight`.*missing"):
        TextEncoderConfig.from_tensors(incomplete, {})
    with pytest.raises(CheckpointError, match=r"`blocks\.0\.attn\.q\.weight`.*12 rows for 5 heads"):
        TextEncoderConfig.from_tensors(shapes | {"blocks.0.pos_embedding.embedding.weight": (8, 5)}, {})


def test_unusable_tokenizers_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer not found.*google/umt5-xxl"):
        Tokenizer(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path, 8)
    TokenizerFile(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="has no token <pad>"):
        Tokenizer(tmp_path, 8)
