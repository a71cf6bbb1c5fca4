"""What the keys of a LoRA file name: a layer of the model, and a part of that layer's update.

Sources: the files that kohya's trainers and musubi-tuner, diffusion-pipe, DiffSynth-Studio, VideoX-Fun,
OneTrainer, LyCORIS, PEFT, diffusers and LightX2V write, and what ComfyUI reads.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.models.quantized.linear import QuantizedLinear
from talkinghead_lab.weights.formats.containers import WeightFile
from talkinghead_lab.weights.formats.diffusers_names import diffusers_name
from talkinghead_lab.weights.lora.origin import made_for, stated_origin

# Written before the name of a layer, in the order in which they are nested; underscores stand for dots, too.
PREFIXES = (
    *("base_model_model_", "pipe_dit_", "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_"),
    *("model_diffusion_model_", "diffusion_model_", "transformer_"),
)
# Part of an update → its spellings. PEFT writes the name of the adapter into a key, such as `default`.
PARTS = {
    "down": r"lora_down\.weight|lora(?:_linear_layer)?\.down\.weight|lora_A(?:\.\w+)?\.weight|lora_A",
    "up": r"lora_up\.weight|lora(?:_linear_layer)?\.up\.weight|lora_B(?:\.\w+)?\.weight|lora_B",
    "up_bias": r"lora_B(?:\.\w+)?\.bias",
    "mid": r"lora_mid\.weight",
    "alpha": r"alpha",
    "dora_scale": "dora_scale",
    "magnitude": r"lora_magnitude_vector(?:\.\w+){0,2}",
    "diff": r"diff|w_norm",
    "diff_b": r"diff_b|b_norm",
    "diff_m": r"diff_m",
    **{part: part for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    **{part: part for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    "lokr_t2": "lokr_t2",
}
SPELLINGS = "|".join(f"(?P<{part}>{names})" for part, names in PARTS.items())
KEY = re.compile(
    # The oldest spelling joins the layer and `lora.down` by an underscore.
    rf"(?P<layer>.+?)(?:\.|_(?=lora\.))(?:{SPELLINGS})"
)
# Parts of kinds of updates that are not supported.
UNSUPPORTED = {
    "an update that resizes the layer": r"reshape_weight",
    "a weight that replaces the layer's": r"set_weight",
    "OFT or BOFT": r"oft_blocks|oft_diag|oft_[RS](?:\.\w+)*|boft_[RS](?:\.\w+)*|rescale",
    "GLoRA": r"(?:a1|a2|b1|b2|bm)\.weight",
    "IA3": r"on_input|ia3_l(?:\.\w+)*",
    "VeRA": r"vera_lambda_\w+(?:\.\w+)*",
    "AdaLoRA": r"lora_E(?:\.\w+)*",
    "an embedding": r"lora_embedding_[AB](?:\.\w+)*",
    "a quantised LoRA": r"\S*(?:scale_weight|weight_scale|absmax|quant_map|qweight)",
}
OTHERWISE = "Use one for the Wan2.1 image-to-video transformer."


@dataclass
class LayerUpdate:
    """The parts of a file that update one layer.

    Args:
        layer: name of a module or of a bare parameter of the model.
        written: the layer's name as the file spells it.
        file: the LoRA.
        parts: tensors by the names of `PARTS`.
    """

    layer: str
    written: str
    file: WeightFile
    parts: dict[str, Tensor] = field(default_factory=dict)

    def error(self, problem: str, received: object = None, allowed: str | None = None) -> CheckpointError:
        """An error about this layer; `problem` continues "the LoRA FILE …"."""
        remedy = f"The file is damaged or was made for another model{stated_origin(self.file.metadata)}."
        if self.layer == "patch_embedding":
            remedy = "A LoRA for text-to-video has fewer input channels: use its version for image-to-video."
        return CheckpointError(
            f"the LoRA {self.file.path.name} {problem} in {self.layer}",
            received=received,
            allowed=allowed,
            remedy=remedy,
        )


def by_layer(model: nn.Module, file: WeightFile) -> list[LayerUpdate]:
    """Group the tensors of a LoRA by the layer of `model` that they update.

    Raises:
        CheckpointError: keys that name no layer or an unsupported kind of update; a layer named twice.
    """
    names = layer_names(model)
    updates: dict[str, LayerUpdate] = {}
    unmatched = []
    for key, tensor in file.tensors.items():
        match = KEY.fullmatch(key)
        part = match.lastgroup if match else None
        name = _plain(match["layer"]) if match else ""
        if part == "diff_m":
            name, part = f"{name}_modulation", "diff"
        layer = names.get(name)
        if match is None or layer is None or part is None or not isinstance(tensor, Tensor):
            unmatched.append(key)
            continue
        update = updates.setdefault(layer, LayerUpdate(layer, match["layer"], file))
        if update.written != match["layer"] or part in update.parts:
            raise CheckpointError(
                f"the LoRA {file.path.name} updates {layer} twice",
                received=f"`{key}` besides `{update.written}`",
                remedy="It seems to be joined from two LoRAs: give them as two files.",
            )
        update.parts[part] = tensor
    if unmatched:
        raise _unmatched(unmatched, file, names)
    return list(updates.values())


def layer_names(model: nn.Module) -> dict[str, str]:
    """Every spelling of a layer, without a prefix and with underscores for dots → its name in `model`."""
    names: dict[str, str] = {}
    for layer in _layers(model):
        spellings = {layer, diffusers_name(layer), layer.replace("audio_proj.", "multitalk_audio_proj.")}
        names |= {spelling.replace(".", "_"): layer for spelling in spellings}
    return names


def _layers(model: nn.Module) -> Iterator[str]:
    """Modules with a weight, and parameters that are neither weight nor bias."""
    for name, module in model.named_modules():
        own = {leaf for leaf, _ in module.named_parameters(recurse=False)}
        if "weight" in own or isinstance(module, QuantizedLinear):
            yield name
        yield from (f"{name}.{leaf}".removeprefix(".") for leaf in own - {"weight", "bias"})


def _plain(name: str) -> str:
    """The spelling of a layer that `layer_names` lists."""
    name = name.replace(".", "_")
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _unmatched(keys: list[str], file: WeightFile, names: Mapping[str, str]) -> CheckpointError:
    for kind, part in UNSUPPORTED.items():
        if of_kind := [key for key in keys if re.fullmatch(rf"\S+?\.(?:{part})", key)]:
            return CheckpointError(
                f"the LoRA {file.path.name} holds {kind}, which is not supported",
                received=f"`{of_kind[0]}`" + (f" and {len(of_kind) - 1} more" if of_kind[1:] else ""),
                remedy="Use a version of it with low-rank pairs (`lora_down`, `lora_up`).",
            )
    origin = made_for(keys, names)
    stated = stated_origin(file.metadata)
    remedy = f"It seems to be {origin or 'for another model'}{stated}." if origin or stated else OTHERWISE
    return CheckpointError(
        f"the LoRA {file.path.name} was made for another model: "
        f"{len(keys)} of its {len(file.tensors)} keys match no layer",
        received=", ".join(f"`{key[:120]}`" for key in keys[:3]) + (", …" if keys[3:] else ""),
        remedy=remedy,
    )
