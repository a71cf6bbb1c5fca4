"""The request: one frozen, validated object that YAML, notebooks, widgets, the shell and HTTP all share."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from talkinghead_lab.errors import InvalidRequest, MediaError, nearest_name
from talkinghead_lab.foundation.latent_grid import PIXELS_PER_TOKEN, is_whole_chunk
from talkinghead_lab.foundation.paths import SAMPLE_PREFIX, project_folder
from talkinghead_lab.foundation.schema import without_version

VIDEO_METADATA_KEY = "comment"

# The released configuration's own text (`sample_neg_prompt` of its 14B config): the model's published
# numbers are made with it.
RELEASED_NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
    "poorly drawn hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, "
    "still picture, messy background, three legs, many people in the background, walking backwards"
)
RELEASED_SHIFT = {"infinitetalk-480": 7.0, "infinitetalk-720": 11.0}


def _absolute(path: object) -> object:
    """Make a path independent of the working directory; names of shipped samples stay as they are."""
    if isinstance(path, str) and not path.strip():
        raise ValueError("must not be empty")
    if not isinstance(path, str | Path) or str(path).startswith(SAMPLE_PREFIX):
        return path
    return str(project_folder() / Path(path).expanduser())


MediaPath = Annotated[str, BeforeValidator(_absolute)]
Box = tuple[int, int, int, int]


class Lora(BaseModel):
    """One low-rank adapter file and how strongly it is applied."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    path: MediaPath = Field(description="LoRA file, .safetensors (or a shipped one, sample:NAME)")
    scale: float = Field(1.0, ge=-10, le=10, description="strength; 1 is the trained one")


class GenerationParams(BaseModel):
    """Everything that decides a video; two equal requests give equal frames on one machine.

    Relative paths start from the working directory (from its parent where that is `notebooks/`).

    Raises:
        InvalidRequest: an unknown field (with the nearest known name), a value out of range, a contradiction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    audio_path: MediaPath = Field(description="recording, or a video whose sound track speaks")
    image_path: MediaPath = Field(description="portrait, or a driving video to dub")
    prompt: str = Field("", max_length=2000, description="what is seen and how the person moves")
    negative_prompt: str = Field(
        RELEASED_NEGATIVE_PROMPT, max_length=2000, description="what must not be seen"
    )

    resolution: Literal["infinitetalk-480", "infinitetalk-720"] = Field(
        "infinitetalk-480", description="the family of released frame sizes"
    )
    frame_size: str = Field(
        "auto", description="auto: the released size nearest the portrait's shape; or WIDTHxHEIGHT in pixels"
    )
    max_frames: int | None = Field(
        None, ge=1, le=1_000_000, description="stop after this many video frames (25 a second)"
    )
    seed: int = Field(42, ge=0, lt=2**63, description="the only source of randomness")

    diffusion_steps: int = Field(40, ge=1, le=1000, description="sampling steps of each chunk")
    text_guide_scale: float = Field(
        5.0, ge=0, le=30, description="how strongly the prompt steers; 1 needs a forward less"
    )
    audio_guide_scale: float = Field(4.0, ge=0, le=30, description="how strongly the recording steers")
    sample_shift: float | None = Field(
        None, gt=0, le=100, description="timestep shift; unset: 7 for 480, 11 for 720"
    )
    chunk_frames: int = Field(81, ge=5, le=1001, description="video frames sampled together, 4n + 1")
    motion_frame: int = Field(9, ge=1, le=997, description="frames a chunk repeats of the one before, 4n + 1")
    trim_last_chunk: bool = Field(False, description="the last chunk samples no more than is needed")

    use_color_correction: bool = Field(True, description="match every frame's colours to the portrait's")
    color_correction_strength: float = Field(1.0, ge=0, le=1, description="0: as sampled; 1: fully matched")
    seam_frames: int = Field(
        0, ge=0, le=40, description="frames over which the step at a chunk's seam fades; 0: as released"
    )
    use_apg: bool = Field(False, description="adaptive projected guidance")
    apg_momentum: float = Field(-0.75, ge=-1, le=1, description="running average of the guidance updates")
    apg_norm_threshold: float = Field(
        55.0, ge=0, le=1e6, description="longest guidance update; 0 switches it off"
    )
    step_cache_threshold: float | None = Field(
        None, gt=0, le=1e6, description="skip forwards while the time embedding moves less than this"
    )

    loras: tuple[Lora, ...] = Field(
        (), max_length=16, description="adapters merged into the transformer, in order"
    )
    second_audio_path: MediaPath | None = Field(None, description="recording of a second speaker")
    speaker_boxes: tuple[Box, Box] | None = Field(
        None,
        description="[left, top, right, bottom] in portrait pixels per speaker; unset: left and right half",
    )
    audio_mix: Literal["para", "add"] = Field(
        "para", description="para: both speak at once; add: the second after the first"
    )

    checkpoint: Literal["embedded", "released"] = Field(
        "embedded", description="the small model that ships with the package, or the released 14B weights"
    )
    ckpt_dir: MediaPath | None = Field(None, description="Wan2.1-I2V-14B folder; unset: variable CKPT_DIR")
    wav2vec_dir: MediaPath | None = Field(None, description="wav2vec2 folder; unset: variable WAV2VEC_DIR")
    infinitetalk_dir: MediaPath | None = Field(
        None,
        description="InfiniteTalk folder or file, quantised ones included; unset: variable INFINITETALK_DIR",
    )
    precision: Literal["auto", "fp32", "bf16", "fp8", "int8"] = Field(
        "auto",
        description="auto: bf16 on a GPU, fp32 on a CPU; int8 stores weights so, fp8 multiplies so",
    )
    attention: Literal["auto", "sdpa", "flash3", "flash3_fp8", "triton"] = Field(
        "auto",
        description="self-attention's kernel; auto: the fastest exact; flash3_fp8, triton: eight bits",
    )
    compile_blocks: bool | None = Field(
        None, description="compile the transformer; unset: on a GPU, for the released sizes and one speaker"
    )
    vram_budget_gib: float | None = Field(
        None, gt=0, le=4096, description="device memory in GiB to stay within; unset: all weights stay there"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")

    def __init__(self, **fields: Any):
        known = type(self).model_fields
        for name in fields:
            if name not in known:
                raise InvalidRequest("unknown parameter", received=name, remedy=nearest_name(name, known))
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _first_complaint(error) from None

    @field_validator("frame_size")
    @classmethod
    def _frame_size_is_auto_or_whole_tokens(cls, value: str) -> str:
        if value == "auto":
            return value
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)
        if not match or any(side == 0 or side % PIXELS_PER_TOKEN for side in map(int, match.groups())):
            raise ValueError(f"must be auto or WIDTHxHEIGHT with multiples of {PIXELS_PER_TOKEN}")
        return value

    @field_validator("chunk_frames", "motion_frame")
    @classmethod
    def _fills_its_latent_frames(cls, value: int) -> int:
        if not is_whole_chunk(value):
            below = 4 * ((value - 1) // 4) + 1
            raise ValueError(f"must be 4n + 1; the nearest are {below} and {below + 4}")
        return value

    @field_validator("speaker_boxes")
    @classmethod
    def _boxes_enclose_something(cls, boxes: tuple[Box, Box] | None) -> tuple[Box, Box] | None:
        for left, top, right, bottom in boxes or ():
            if not (0 <= left < right and 0 <= top < bottom):
                raise ValueError(
                    "must be [left, top, right, bottom] with 0 <= left < right and 0 <= top < bottom"
                )
        return boxes

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.motion_frame >= self.chunk_frames:
            raise ValueError(
                f"motion_frame {self.motion_frame} must be smaller than chunk_frames {self.chunk_frames}"
            )
        if self.speaker_boxes and not self.second_audio_path:
            raise ValueError("speaker_boxes need a second recording: set second_audio_path")
        return self

    @property
    def shift(self) -> float:
        """The timestep shift in force: the request's own, else the released one for its resolution."""
        return self.sample_shift if self.sample_shift is not None else RELEASED_SHIFT[self.resolution]

    @property
    def speakers(self) -> int:
        return 2 if self.second_audio_path else 1

    @property
    def forced_size(self) -> tuple[int, int] | None:
        """(width, height) where `frame_size` forces one."""
        if self.frame_size == "auto":
            return None
        width, height = self.frame_size.split("x")
        return int(width), int(height)

    @property
    def weight_folders(self) -> dict[str, str | None]:
        """Folders of the released checkpoint, where the request names them."""
        return {name: getattr(self, name) for name in ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")}

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self)(**(self.model_dump() | changes))

    def to_yaml(self, *, complete: bool = False) -> str:
        """YAML that `from_yaml` and papermill read back.

        Args:
            complete: write fields at their defaults too, for a notebook whose own defaults are others.
        """
        fields = self.model_dump(mode="json", exclude_defaults=not complete)
        # PyYAML writes these three kinds of line break, unless escaped, so that it does not read them back.
        escaped = re.search("[\x85\u2028\u2029]", json.dumps(fields, ensure_ascii=False))
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=not escaped)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a parameter file; keyword arguments win over what it says."""
        return cls(**(read_yaml(path) | overrides))

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], besides: Collection[str] = ()) -> Self:
        """Build the request from a notebook's `globals()`.

        Papermill injects what it is given without checking names, so every plain literal that stands in the
        namespace is taken for a parameter and an unknown one is refused. `besides`: names of settings that
        belong to the notebook and not to the request.
        """
        literals = (str, int, float, bool, list, tuple, dict, type(None))
        hidden_by_jupyter = {"In", "Out", "exit", "quit", "get_ipython"}
        fields = {
            name: value
            for name, value in namespace.items()
            if isinstance(value, literals)
            and not name.startswith("_")
            and name not in {*hidden_by_jupyter, *besides}
        }
        return cls(**without_version(fields))  # papermill injects that of a run's `request.yaml`

    @classmethod
    def from_video(cls, path: str | Path) -> Self:
        """Read the request back from the metadata of a video that this package made."""
        import av

        try:
            with av.open(str(path)) as container:
                text = container.metadata.get(VIDEO_METADATA_KEY, "")
        except (OSError, av.error.FFmpegError) as error:
            raise MediaError(f"the video cannot be opened ({error})", received=str(path)) from None
        try:
            return cls(**yaml.safe_load(text))
        except (TypeError, yaml.YAMLError):
            raise MediaError(
                "the video carries no request",
                received=str(path),
                remedy="Only videos made by talkinghead_lab, and not re-encoded since, carry one.",
            ) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds one mapping of names to values."""
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the parameter file cannot be read ({error})", received=str(path)) from None
    except yaml.YAMLError as error:
        raise InvalidRequest(f"the parameter file is not YAML ({error})", received=str(path)) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the parameter file holds no mapping of names to values", received=str(path))
    return without_version(fields)


def _first_complaint(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's first finding into our error: field, value, what is allowed."""
    finding = error.errors(include_url=False)[0]
    name = ".".join(map(str, finding["loc"])) or "request"
    if finding["type"] == "missing":
        return InvalidRequest(f"`{name}` is missing", remedy=f"Set `{name}`.")
    if not finding["loc"]:
        return InvalidRequest(finding["msg"].removeprefix("Value error, "))
    field = GenerationParams.model_fields.get(str(finding["loc"][0]))
    received = repr(finding["input"])
    return InvalidRequest(
        f"`{name}` is not valid",
        received=received if len(received) <= 80 else f"{received[:60]}… ({len(received)} characters)",
        allowed=finding["msg"].removeprefix("Value error, ").removeprefix("Input should be "),
        remedy=f"`{name}`: {field.description}." if field else None,
    )
