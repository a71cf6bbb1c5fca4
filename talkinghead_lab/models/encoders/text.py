"""The umT5 text encoder: maps prompts to one hidden state per token.

The network is the encoder of transformers' `UMT5EncoderModel`; the weights are the released
`models_t5_umt5-xxl-enc-bf16.pth`. Architecture: T5 1.1 (arXiv 2002.05202) with a separate relative position
bias in every layer (umT5, arXiv 2304.09151).
"""

import html
import logging
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ftfy
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.released_names import Shapes, count_blocks, rename, shape_of

logger = logging.getLogger(__name__)
# A tensor, or a layer that holds a quantised one.
Weight = TypeVar("Weight")

RELEASED_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
PADDING = "<pad>"

# Released module → module of `TextEncoder`.
_MODULES = {
    r"token_embedding": "encoder.embed_tokens",
    r"norm": "encoder.final_layer_norm",
    r"blocks\.(\d+)\.norm1": r"encoder.block.\1.layer.0.layer_norm",
    r"blocks\.(\d+)\.attn\.([qkvo])": r"encoder.block.\1.layer.0.SelfAttention.\2",
    r"blocks\.(\d+)\.pos_embedding\.embedding": (
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias"
    ),
    r"blocks\.(\d+)\.norm2": r"encoder.block.\1.layer.1.layer_norm",
    r"blocks\.(\d+)\.ffn\.gate\.0": r"encoder.block.\1.layer.1.DenseReluDense.wi_0",
    r"blocks\.(\d+)\.ffn\.fc1": r"encoder.block.\1.layer.1.DenseReluDense.wi_1",
    r"blocks\.(\d+)\.ffn\.fc2": r"encoder.block.\1.layer.1.DenseReluDense.wo",
}


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder.

    Args:
        vocab_size: number of token embeddings.
        dim: width of the hidden states.
        head_dim: width of one attention head.
        num_heads: attention heads; `num_heads` · `head_dim` may differ from `dim`.
        ffn_dim: inner width of the feed-forward layers.
        num_layers: blocks.
        num_buckets: buckets of the relative position bias.
        max_distance: all larger distances share one bucket.
        norm_eps: added to the mean square in norms.
    """

    vocab_size: int
    dim: int
    head_dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    num_buckets: int
    max_distance: int = 128
    norm_eps: float = 1e-6

    @classmethod
    def from_tensors(cls, shapes: Shapes, fields: Mapping[str, Any]) -> "TextEncoderConfig":
        """Read the sizes from the released tensors; `fields` may set `max_distance` and `norm_eps`.

        Raises:
            CheckpointError: a required tensor is missing, or two contradict each other.
        """
        vocab_size, dim = shape_of(shapes, "token_embedding.weight", 2, RELEASED_FILE)
        num_buckets, num_heads = shape_of(shapes, "blocks.0.pos_embedding.embedding.weight", 2, RELEASED_FILE)
        attention_dim = shape_of(shapes, "blocks.0.attn.q.weight", 2, RELEASED_FILE)[0]
        if attention_dim % num_heads:
            raise CheckpointError(
                "`blocks.0.attn.q.weight` is not divisible into the heads of `blocks.0.pos_embedding`",
                received=f"{attention_dim} rows for {num_heads} heads",
                remedy=f"Check that the file is {RELEASED_FILE} or has its layout.",
            )
        return cls(
            vocab_size=vocab_size,
            dim=dim,
            head_dim=attention_dim // num_heads,
            num_heads=num_heads,
            ffn_dim=shape_of(shapes, "blocks.0.ffn.fc1.weight", 2, RELEASED_FILE)[0],
            num_layers=count_blocks(shapes, "blocks."),
            num_buckets=num_buckets,
            **{name: fields[name] for name in ("max_distance", "norm_eps") if name in fields},
        )


def from_released(tensors: Mapping[str, Weight], config: TextEncoderConfig) -> dict[str, Weight]:
    """Rename the released tensors to the names of `TextEncoder`; unknown names are kept."""
    return {rename(name, _MODULES): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Tokens:
    """Token rows of equal length.

    Args:
        ids: [B, N] token numbers, padded at the end.
        mask: [B, N], 1 for tokens and 0 for padding.
        dropped: for each text, the number of tokens that did not fit.
    """

    ids: Tensor
    mask: Tensor
    dropped: tuple[int, ...]


class Tokenizer:
    """Cleans and tokenises prompts.

    Args:
        source: a folder that holds `tokenizer.json` (the checkpoint's `google/umt5-xxl`), or such a file,
            also compressed (`.xz`).
        text_len: tokens per row; longer texts are truncated before their closing token.

    Raises:
        CheckpointError: the file is missing or damaged, or has no padding token.
    """

    def __init__(self, source: Path | str, text_len: int) -> None:
        self.text_len = text_len
        path = Path(source) if Path(source).is_file() else Path(source) / "tokenizer.json"
        remedy = "Use the google/umt5-xxl folder of the checkpoint."
        if not path.is_file():
            raise CheckpointError("tokenizer not found", received=str(path), remedy=remedy)
        try:
            content = path.read_bytes()
            content = lzma.decompress(content) if path.suffix == ".xz" else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the Rust library raises plain `Exception`
            raise CheckpointError(
                f"the tokenizer cannot be read ({error})", received=str(path), remedy=remedy
            ) from None
        padding = self._tokenizer.token_to_id(PADDING)
        if padding is None:
            raise CheckpointError(f"the tokenizer has no token {PADDING}", received=str(path), remedy=remedy)
        self._tokenizer.enable_truncation(text_len)
        self._tokenizer.enable_padding(length=text_len, pad_id=padding, pad_token=PADDING)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts, cleaned as for the released model; `dropped` reports truncation."""
        rows = self._tokenizer.encode_batch([clean(text) for text in texts])
        return Tokens(
            ids=torch.tensor([row.ids for row in rows]),
            mask=torch.tensor([row.attention_mask for row in rows]),
            dropped=tuple(sum(_count_tokens(rest) for rest in row.overflowing) for row in rows),
        )


def _count_tokens(row: tokenizers.Encoding) -> int:
    """Number of tokens of a row without padding and closing token."""
    return len(row.special_tokens_mask) - sum(row.special_tokens_mask)


def clean(text: str) -> str:
    """Fix broken encodings, unescape HTML twice and collapse whitespace, as the released code does."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class GatedFeedForward(nn.Module):
    """T5's gated feed-forward layer. It replaces the one in transformers, which casts to the dtype of `wo`.

    With an 8-bit weight, that cast would reduce the hidden states to 8 bits.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.wi_1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.wo = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] → [..., dim]."""
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class TextEncoder(nn.Module):
    """umT5's encoder; like the released code, it returns one tensor per text, without padding."""

    def __init__(self, config: TextEncoderConfig) -> None:
        # Imported here because it takes seconds, which overlap with reading the weights.
        from transformers import UMT5Config, UMT5EncoderModel

        super().__init__()
        self.config = config
        network = UMT5EncoderModel(
            UMT5Config(
                vocab_size=config.vocab_size,
                d_model=config.dim,
                d_kv=config.head_dim,
                d_ff=config.ffn_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                relative_attention_num_buckets=config.num_buckets,
                relative_attention_max_distance=config.max_distance,
                layer_norm_epsilon=config.norm_eps,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                attn_implementation="sdpa",
            )
        )
        # Only the encoder stack, because the full model registers the embedding twice.
        self.encoder = network.encoder
        for block in self.encoder.block:
            block.layer[1].DenseReluDense = GatedFeedForward(config)

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Encode token rows.

        Args:
            ids: [B, N] token numbers, padded at the end.
            mask: [B, N], 1 for tokens and 0 for padding.

        Returns:
            Hidden states [n, dim] of each row, where n is its number of tokens.
        """
        lengths = mask.gt(0).sum(dim=1).tolist()
        # Padding is masked out, so columns that are padding in every row can be left out.
        longest = max(lengths)
        hidden = self.encoder(input_ids=ids[:, :longest], attention_mask=mask[:, :longest]).last_hidden_state
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[Tensor]:
        """Hidden states [n, dim] of each text, on the device of the weights; truncation is logged."""
        tokens = tokenizer(texts)
        for text, dropped in zip(texts, tokens.dropped, strict=True):
            if dropped:
                logger.warning(
                    "A prompt exceeds the limit by %d tokens (limit: %d); its end is dropped: %.60s…",
                    *(dropped, tokenizer.text_len, text),
                )
        device = self.encoder.embed_tokens.weight.device
        return self(tokens.ids.to(device), tokens.mask.to(device))
