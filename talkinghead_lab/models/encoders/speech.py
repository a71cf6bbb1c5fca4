"""The wav2vec2 speech encoder: maps a recording to one row of hidden states per video frame.

The network is transformers' `Wav2Vec2Model` (arXiv 2006.11477), built from the `config.json` of a wav2vec2
folder. Between its convolutions and its transformer, the features are interpolated from 50 per second to the
frame rate of the video, as in InfiniteTalk.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError, MediaError
from talkinghead_lab.models.encoders import long_recordings
from talkinghead_lab.models.encoders.long_recordings import ROWS_PER_PIECE, pieces
from talkinghead_lab.models.released_names import Shapes, count_blocks, shape_of

RELEASED_FOLDER = "chinese-wav2vec2-base"

# Unused parts of released files: the masking embedding of training, and the heads of pretraining and speech
# recognition.
_UNUSED = r"masked_spec_embed$|(quantizer|project_hid|project_q|dropout_features|lm_head)\."
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}

# Config fields of the random operations in training; all are set to zero.
_RANDOM = ("hidden_dropout", "activation_dropout", "attention_dropout", "layerdrop", "mask_time_prob")

# Twenty seconds; at the released sizes, the widest convolution then takes about 130 MB.
_SAMPLES_PER_PIECE = 320_000


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """Sizes of the speech encoder, named as in a wav2vec2 `config.json`.

    Args:
        hidden_size: width of the hidden states.
        num_hidden_layers: transformer layers; each returns one row per frame.
        num_attention_heads: attention heads.
        intermediate_size: inner width of the feed-forward layers.
        conv_dim, conv_kernel, conv_stride: channels, kernel and stride of each convolution over the samples.
        conv_bias: whether these convolutions have a bias.
        num_conv_pos_embeddings: kernel size of the positional convolution.
        num_conv_pos_embedding_groups: its groups.
        feat_extract_norm: "group" (the first convolution is normalised over time) or "layer" (every one, over
            channels).
        feat_extract_activation, hidden_act: activations, by transformers' names.
        do_stable_layer_norm: whether norms come before each layer, with one more after the last.
        layer_norm_eps: added to the variance in norms.
        do_normalize: whether recordings are normalised to zero mean and unit variance
            (`preprocessor_config.json`).
        sampling_rate: samples per second of the training audio.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    hidden_act: str = "gelu"
    do_stable_layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    do_normalize: bool = True
    sampling_rate: int = 16000

    def __post_init__(self) -> None:
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                "`num_attention_heads` of config.json does not divide the width of the speech encoder",
                received=f"{self.hidden_size} channels for {self.num_attention_heads} heads",
                remedy="Use the config.json that came with the weights.",
            )
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise CheckpointError(
                "`conv_stride` of config.json does not fit `feature_extractor.conv_layers`",
                received=list(self.conv_stride),
                allowed=f"{len(self.conv_dim)} numbers",
            )

    @property
    def samples_per_feature(self) -> int:
        """Samples between consecutive features."""
        return prod(self.conv_stride)

    @property
    def samples_per_piece(self) -> int:
        """Number of samples that the convolutions process at a time."""
        return _SAMPLES_PER_PIECE

    @property
    def receptive_field(self) -> int:
        """Number of samples that one feature depends on."""
        strides = (prod(self.conv_stride[:i]) for i in range(len(self.conv_stride)))
        return 1 + sum(
            (kernel - 1) * stride for kernel, stride in zip(self.conv_kernel, strides, strict=True)
        )

    @classmethod
    def from_tensors(cls, shapes: Shapes, fields: Mapping[str, Any]) -> "SpeechEncoderConfig":
        """Read the sizes from the tensors, the rest from `fields` (config.json).

        Raises:
            CheckpointError: a required tensor is missing, or config.json contradicts one.
        """
        shapes = {_canonical_name(name): tuple(shape) for name, shape in shapes.items()}
        found = _sizes(shapes)
        for field, (value, tensor) in found.items():
            stated = fields.get(field, value)
            if (tuple(stated) if isinstance(stated, list) else stated) != value:
                raise CheckpointError(
                    f"`{field}` of config.json contradicts the tensor `{tensor}`",
                    received=stated,
                    allowed=repr(value),
                    remedy="Use the config.json that came with the weights.",
                )
        return cls(
            **{field: value for field, (value, _) in found.items()},
            num_attention_heads=fields.get("num_attention_heads", 12),
            conv_stride=tuple(fields.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))),
            **{name: fields[name] for name in _OPTIONAL_FIELDS if name in fields},
        )


# Optional fields of config.json that shapes do not determine; the defaults are those of transformers.
_OPTIONAL_FIELDS = (
    *("feat_extract_activation", "hidden_act", "do_stable_layer_norm", "layer_norm_eps"),
    *("do_normalize", "sampling_rate"),
)


def _sizes(shapes: Shapes) -> dict[str, tuple[Any, str]]:
    """Each size that the tensors determine, and the name of that tensor."""
    first, position = "feature_extractor.conv_layers.0", "encoder.pos_conv_embed.conv"
    convolutions = [
        shape_of(shapes, f"feature_extractor.conv_layers.{i}.conv.weight", 3, RELEASED_FOLDER)
        for i in range(count_blocks(shapes, "feature_extractor.conv_layers."))
    ]
    hidden, group, kernel = shape_of(shapes, f"{position}.{_WEIGHT_NORM['weight_v']}", 3, RELEASED_FOLDER)
    dense = "encoder.layers.0.feed_forward.intermediate_dense.weight"
    norm_everywhere = "feature_extractor.conv_layers.1.layer_norm.weight" in shapes
    return {
        "hidden_size": (hidden, f"{position}.{_WEIGHT_NORM['weight_v']}"),
        "num_hidden_layers": (count_blocks(shapes, "encoder.layers."), "encoder.layers"),
        "intermediate_size": (shape_of(shapes, dense, 2, RELEASED_FOLDER)[0], dense),
        "conv_dim": (tuple(shape[0] for shape in convolutions), "feature_extractor.conv_layers"),
        "conv_kernel": (tuple(shape[2] for shape in convolutions), "feature_extractor.conv_layers"),
        "conv_bias": (f"{first}.conv.bias" in shapes, f"{first}.conv.bias"),
        "num_conv_pos_embeddings": (kernel, f"{position}.{_WEIGHT_NORM['weight_v']}"),
        "num_conv_pos_embedding_groups": (hidden // group, f"{position}.{_WEIGHT_NORM['weight_v']}"),
        "feat_extract_norm": ("layer" if norm_everywhere else "group", f"{first}.layer_norm.weight"),
    }


def _canonical_name(name: str) -> str:
    """A tensor name without the prefix of pretraining files, and with PyTorch's current weight-norm names."""
    stem, _, last = name.removeprefix("wav2vec2.").rpartition(".")
    return f"{stem}.{_WEIGHT_NORM.get(last, last)}" if stem else last


def from_released(tensors: dict[str, Tensor], config: SpeechEncoderConfig) -> dict[str, Tensor]:
    """Rename the tensors of any transformers wav2vec2 file to the names of `SpeechEncoder`.

    The heads of pretraining and recognition are dropped. Unknown names are kept.
    """
    renamed = {_canonical_name(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if not re.match(_UNUSED, name)}


class SpeechEncoder(nn.Module):
    """wav2vec2 with features interpolated to the frame rate of the video, and without dropout."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        # Imported here because it takes seconds, which overlap with reading the weights.
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        super().__init__()
        self.config = config
        fields = asdict(config) | dict.fromkeys(_RANDOM, 0.0) | {"attn_implementation": "sdpa"}
        del fields["do_normalize"], fields["sampling_rate"]
        network = Wav2Vec2Model(Wav2Vec2Config(**fields))
        self.feature_extractor: Any = network.feature_extractor
        self.feature_projection: Any = network.feature_projection
        self.encoder: Any = network.encoder

    def forward(self, waveform: Tensor, frames: int) -> Tensor:
        """Encode a recording.

        A recording of more than a minute stays in host memory; the device computes one piece of it at a
        time, with the same result as for the full recording. So device memory does not grow with its length.

        Args:
            waveform: [samples], mono, `sampling_rate` samples per second.
            frames: F, duration of the recording in video frames.

        Returns:
            [F, layers, hidden_size], in host memory: the states after each layer.

        Raises:
            MediaError: the recording is shorter than one feature.
        """
        if waveform.ndim != 1 or len(waveform) < self.config.receptive_field or frames < 1:
            raise MediaError(
                "the recording is too short for the speech encoder",
                received=f"{list(waveform.shape)} samples for {frames} frames",
                allowed=f"one channel of {self.config.receptive_field} samples or more",
            )
        config, device = self.config, self.feature_projection.projection.weight.device
        if frames <= ROWS_PER_PIECE:
            rows = self._rows(waveform.to(device), frames)
            layers: Iterator[Tensor] = (x[0] for x in self.layer_states(rows[None]))
        else:
            rows = self._rows(waveform.cpu(), frames)
            heads = config.num_attention_heads
            layers = long_recordings.layer_states(self.encoder, rows, heads, config.do_stable_layer_norm)
        states = torch.empty(frames, config.num_hidden_layers, config.hidden_size, dtype=rows.dtype)
        for layer, x in enumerate(layers):
            states[:, layer] = x
        return states

    def _rows(self, waveform: Tensor, frames: int) -> Tensor:
        """The transformer's input [F, hidden_size], on the device of the waveform."""
        waveform = waveform.float()
        if self.config.do_normalize:
            # As in transformers' Wav2Vec2FeatureExtractor, including the 1e-7.
            waveform = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
        weight = self.feature_projection.projection.weight
        features = self._features(waveform.to(weight.dtype))
        features = F.interpolate(features[None], size=frames, mode="linear", align_corners=True)[0].T
        rows = features.new_empty(frames, self.config.hidden_size)
        for piece in pieces(frames):
            rows[piece] = self.feature_projection(features[None, piece].to(weight.device))[0][0]
        return rows

    def _features(self, waveform: Tensor) -> Tensor:
        """The features [channels, n] of the full recording, computed in pieces that overlap as needed."""
        stride, field = self.config.samples_per_feature, self.config.receptive_field
        device = self.feature_projection.projection.weight.device
        first, *others = self.feature_extractor.conv_layers
        if self.config.feat_extract_norm == "group":
            first = _with_global_norm(first, waveform)
        length, done = (len(waveform) - field) // stride + 1, 0
        features = waveform.new_empty(self.config.conv_dim[-1], length)
        for piece in _overlapping_pieces(waveform, field, stride, _SAMPLES_PER_PIECE // stride):
            x = first(piece[None, None].to(device))
            for layer in others:
                x = layer(x)
            features[:, done : done + x.shape[2]] = x[0]
            done += x.shape[2]
        return features

    def layer_states(self, x: Tensor) -> Iterator[Tensor]:
        """The states [1, n, hidden_size] after each layer of the transformer."""
        encoder, stable = self.encoder, self.config.do_stable_layer_norm
        x = x + encoder.pos_conv_embed(x)
        if not stable:
            x = encoder.layer_norm(x)
        for number, layer in enumerate(encoder.layers, start=1):
            x = layer(x)
            yield encoder.layer_norm(x) if stable and number == len(encoder.layers) else x


def _overlapping_pieces(waveform: Tensor, field: int, stride: int, outputs: int) -> Iterator[Tensor]:
    """Split samples into pieces from which convolutions compute `outputs` consecutive values each.

    Args:
        waveform: [samples].
        field: receptive field of the convolutions in samples.
        stride: samples between consecutive values.
        outputs: values per piece; the last piece may have fewer.
    """
    total = (len(waveform) - field) // stride + 1
    for start in range(0, total, outputs):
        end = min(start + outputs, total)
        yield waveform[start * stride : (end - 1) * stride + field]


def _with_global_norm(layer: Any, waveform: Tensor) -> Callable[[Tensor], Tensor]:
    """The first convolution, for use on pieces, with its norm over time taken from the full recording.

    Statistics of each piece would raise a quiet passage to the loudness of the rest.
    """
    convolution, norm = layer.conv, layer.layer_norm
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    samples = _overlapping_pieces(waveform, kernel, stride, _SAMPLES_PER_PIECE // stride)
    device = convolution.weight.device
    parts = [_statistics(convolution(piece[None, None].to(device))[0].float()) for piece in samples]
    lengths, variances, means = (torch.stack(part) for part in zip(*parts, strict=True))
    fraction = (lengths / lengths.sum())[:, None]
    mean = (fraction * means).sum(dim=0)
    variance = (fraction * (variances + (means - mean).square())).sum(dim=0)
    scale = norm.weight * (variance + norm.eps).rsqrt().to(norm.weight)
    shift = norm.bias - mean.to(norm.bias) * scale
    return lambda x: layer.activation(convolution(x) * scale[:, None] + shift[:, None])


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Length, variance and mean of each channel of [channels, n]."""
    return x.new_tensor(x.shape[1]), *torch.var_mean(x, dim=1, correction=0)
