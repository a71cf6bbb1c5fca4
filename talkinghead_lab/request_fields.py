"""The fields of a request, each with its type, default, range and description, and what follows from them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from talkinghead_lab.defaults import RELEASED_NEGATIVE_PROMPT, RELEASED_SHIFT
from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.foundation import field_types as types
from talkinghead_lab.foundation.colors import checked_color

# Fields that name weights; the bundled model has its own.
WEIGHT_FOLDERS = ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")
WEIGHT_FILES = ("transformer", "adapter", "vae", "text_encoder", "image_encoder", "speech_encoder")
RELEASED_ONLY = ("weights", *WEIGHT_FILES)
# Fields that name one media file each, or none.
MEDIA_FIELDS = ("image_path", "audio_path", "second_audio_path", "continue_video", "lips_mask")


class RequestFields(BaseModel):
    """The fields of `params.GenerationParams`, each checked by itself.

    Their defaults are those of the released weights; `defaults` has those of the bundled model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    audio_path: types.MediaPath | None = Field(
        None,
        description="speech recording, or a video with speech in its sound track; unset: only with segments",
    )
    audio_track: int | None = Field(
        None,
        ge=1,
        le=99,
        description="sound track of `audio_path`, counted from 1; unset: the file's default track",
    )
    audio_start: float = Field(0.0, ge=0, le=7200, description="seconds to skip at the start of `audio_path`")
    image_path: types.Pictures = Field(
        description="portrait image, or a driving video to dub; a list of start (in seconds) and file begins "
        "a new shot at each start"
    )
    continue_video: types.MediaPath | None = Field(
        None, description="video to go on from: its last frames are the overlap of the first chunk"
    )
    background: str = Field(
        "white",
        description="colour behind transparent pixels of `image_path`: #rrggbb or a CSS colour name",
    )
    prompt: types.Prompts = Field(
        "",
        description="description of the scene and of how the person moves; a list of start (in seconds) and "
        "text changes it at the first chunk border from each start on",
    )
    negative_prompt: str = Field(
        RELEASED_NEGATIVE_PROMPT, max_length=2000, description="description of what to avoid"
    )

    resolution: Literal["infinitetalk-480", "infinitetalk-720"] = Field(
        "infinitetalk-480", description="family of released frame sizes"
    )
    frame_size: types.FrameSize = Field(
        "auto",
        description="WIDTHxHEIGHT in pixels, multiples of 16, up to 3568x3568 with 81 chunk_frames; "
        "auto: released size closest to the portrait",
    )
    crop: Literal["center", "top", "face", "none"] = Field(
        "center",
        description="part of the picture to keep: its centre, its top, around the face; none: all of it",
    )
    pad: str | None = Field(
        None,
        description="with crop none, what fills the rest: edge, blur, #rrggbb or a CSS colour name",
    )
    max_frames: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="largest number of video frames (25 per second); unset: length of the recording",
    )
    seed: types.Seed | Literal["random"] = Field(
        42, description="seed of all noise; random: a run draws one and records it"
    )

    sampler: Literal["euler", "unipc", "dpm++2m", "lcm"] = Field(
        "euler", description="solver; euler is the released one; the others need the extra samplers"
    )
    diffusion_steps: int = Field(40, ge=1, le=1000, description="sampling steps per chunk")
    text_guide_scale: types.GuidanceScales = Field(
        5.0,
        description="guidance scale of the prompt; 1.0 skips one forward pass per step; a list is spread "
        "evenly over the steps",
    )
    audio_guide_scale: types.GuidanceScales = Field(
        4.0,
        description="guidance scale of the audio; 1.0 skips one forward pass per step; a list is spread "
        "evenly over the steps",
    )
    guidance_interval: types.Interval | None = Field(
        None,
        description="[from, to] as shares of the steps: only these are guided, the others take one forward "
        "pass; unset: all are guided",
    )
    cfg_zero_star: bool = Field(
        False, description="CFG-Zero*: scale passes without a condition by their projection on that with it"
    )
    zero_init_steps: int = Field(
        0, ge=0, le=999, description="CFG-Zero*: first steps that change nothing and take no forward pass"
    )
    sample_shift: float | None = Field(
        None,
        gt=0,
        le=100,
        description="timestep shift; unset: 3 for embedded, 7 for infinitetalk-480, 11 for infinitetalk-720",
    )
    sigmas: types.Sigmas | None = Field(
        None,
        description="noise levels of the steps, for distilled LoRAs, without the final 0; they replace "
        "sample_shift; unset: from sample_shift",
    )
    denoise_strength: float = Field(
        1.0, ge=0.01, le=1, description="below 1.0, restyle a driving video: sample from its noised frames"
    )
    scene_cuts: bool = Field(False, description="new shot at each cut of a driving video; extra scenes")
    lips_only: bool = Field(False, description="keep a driving video and generate only the lower face anew")
    lips_border: int = Field(6, ge=1, le=256, description="lips_only: width of the blend in pixels")
    lips_mask: types.MediaPath | None = Field(
        None, description="lips_only: picture or video, white where to generate anew; unset: the lower face"
    )
    chunk_frames: types.WholeChunk = Field(81, ge=5, le=1001, description="frames sampled together, 4n + 1")
    motion_frame: types.WholeChunk = Field(
        9, ge=1, le=997, description="overlap: frames shared with the previous chunk, 4n + 1"
    )
    trim_last_chunk: bool = Field(False, description="shorten the last chunk to the frames that are needed")

    use_color_correction: bool = Field(True, description="match the colours of every frame to the portrait")
    color_correction_strength: float = Field(
        1.0, ge=0, le=1, description="strength of colour matching; 0: none, 1: full"
    )
    seam_frames: int = Field(
        0, ge=0, le=40, description="frames over which each seam between chunks is blended; 0: none"
    )
    use_apg: bool = Field(False, description="adaptive projected guidance (APG)")
    apg_momentum: float = Field(-0.75, ge=-1, le=1, description="APG: momentum of the averaged updates")
    apg_norm_threshold: float = Field(
        55.0, ge=0, le=1e6, description="APG: largest norm of an update; 0: no limit"
    )
    step_cache_threshold: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="step cache: skip forward passes while the result changes less than this; unset: off",
    )
    step_cache: Literal["released", "first_block"] = Field(
        "released",
        description="how the step cache finds the change; released: estimates it from the timesteps; "
        "first_block: measures it on the first block's update, as a share of it",
    )
    max_consecutive_skips: int | None = Field(
        None, ge=1, le=999, description="step cache: most steps skipped in a row; unset: any number"
    )

    loras: tuple[types.Lora, ...] = Field((), max_length=16, description="LoRAs of the transformer, in order")
    second_audio_path: types.MediaPath | None = Field(None, description="recording of the second speaker")
    speaker_boxes: types.Boxes | None = Field(
        None,
        description="[left, top, right, bottom] in portrait pixels per speaker; people without a recording "
        "are silent; unset: left and right half",
    )
    speaker_masks: types.MaskPaths | None = Field(
        None,
        description="instead of boxes, pictures of the portrait's size: one per speaker, white where they "
        "are, or one for all in red, green, blue, …",
    )
    audio_mix: Literal["para", "add", "timeline"] = Field(
        "para",
        description="para: both speak at once; add: the second speaker follows the first; timeline: as "
        "segments say",
    )
    segments: types.Segments | None = Field(
        None, description="a dialogue: speaker (1 or 2), start and end in seconds, and file of each part"
    )
    speaker_loudness: types.Loudnesses | None = Field(
        None, description="LUFS of each speaker in the sound of the video; unset: as recorded"
    )

    checkpoint: Literal["embedded", "released"] = Field(
        "embedded", description="embedded: the bundled model; released: the 14B weights"
    )
    ckpt_dir: types.MediaPath | None = Field(
        None, description="Wan2.1-I2V-14B folder; unset: environment variable CKPT_DIR"
    )
    wav2vec_dir: types.MediaPath | None = Field(
        None, description="wav2vec2 folder; unset: environment variable WAV2VEC_DIR"
    )
    infinitetalk_dir: types.MediaPath | None = Field(
        None,
        description="InfiniteTalk folder or (quantised) file; unset: environment variable INFINITETALK_DIR",
    )
    weights: types.MediaPath | None = Field(
        None,
        description="folder with weight files, searched by their content; unset: environment variable "
        "WEIGHTS_DIR",
    )
    transformer: types.WeightPath = Field(None, description="weight file of the transformer; unset: searched")
    adapter: types.WeightPath = Field(None, description="weight file of the audio adapter; unset: searched")
    vae: types.WeightPath = Field(None, description="weight file of the video autoencoder; unset: searched")
    text_encoder: types.WeightPath = Field(None, description="weight file of umT5; unset: searched")
    image_encoder: types.WeightPath = Field(None, description="weight file of CLIP; unset: searched")
    speech_encoder: types.WeightPath = Field(None, description="weight file of wav2vec2; unset: searched")
    precision: Literal["auto", "fp32", "bf16", "fp8", "int8"] = Field(
        "auto",
        description="auto: bf16 on a GPU, fp32 on a CPU, fp8 matmuls for weights that are stored in fp8; "
        "bf16, fp32: no fp8 matmuls; int8: quantise weights; fp8: quantise weights and matmuls",
    )
    attention: Literal[
        "auto", "eight_bit", "sdpa", "flash3", "triton_hopper", "flash3_fp8", "sage", "triton"
    ] = Field(
        "auto",
        description="self-attention kernel; auto: fastest exact one; eight_bit: fastest of triton_hopper, "
        "flash3_fp8, sage, triton, which quantise to 8 bits",
    )
    compile_blocks: bool | None = Field(
        None, description="compile the transformer; unset: on a GPU, for released sizes"
    )
    vram_budget_gib: float | None = Field(
        None, gt=0, le=4096, description="device memory budget in GiB; unset: all weights stay on the device"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")

    @field_validator("background", "pad")
    @classmethod
    def _colour_is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        return checked_color(value, ("edge", "blur") if info.field_name == "pad" else ())

    @property
    def shift(self) -> float:
        """The effective timestep shift: the request's, or that of its checkpoint and resolution."""
        return self.sample_shift or RELEASED_SHIFT[self.resolution]

    @property
    def drawn_seed(self) -> int:
        """The seed as a number.

        Raises:
            InvalidRequest: it is `random`, of which a run draws a number when it begins.
        """
        if self.seed == "random":
            raise InvalidRequest("the seed is not drawn yet", received="random", field="seed")
        return self.seed

    @property
    def speakers(self) -> int:
        """People whom the audio adapter tells apart: 2 with a second recording, or with silent people."""
        return 2 if self.speaker_boxes or self.speaker_masks else self.voices

    @property
    def voices(self) -> int:
        """Speakers that have a recording, or a place for one before the last that has."""
        return max([2 if self.second_audio_path else 1, *(part.speaker for part in self.segments or ())])

    @property
    def media(self) -> dict[str, str]:
        """Every media file by its field; in lists by field and place: `speaker_masks.0`, `image_path.1`."""
        named = {name: getattr(self, name) for name in MEDIA_FIELDS} | {"image_path": self.pictures[0].file}
        named |= {f"image_path.{number}": each.file for number, each in enumerate(self.pictures) if number}
        named |= {f"segments.{number}.file": part.file for number, part in enumerate(self.segments or ())}
        named |= {f"speaker_masks.{number}": path for number, path in enumerate(self.speaker_masks or ())}
        return {name: path for name, path in named.items() if path is not None}

    @property
    def recordings(self) -> dict[str, str]:
        """Those of `media` that are heard: one per speaker, or per segment."""
        return {name: path for name, path in self.media.items() if name.endswith(("audio_path", ".file"))}

    @property
    def pictures(self) -> tuple[types.TimedFile, ...]:
        """The picture or video of each shot."""
        picture = self.image_path
        return picture if isinstance(picture, tuple) else (types.TimedFile(start=0, file=picture),)

    @property
    def prompts(self) -> tuple[types.TimedText, ...]:
        """The prompts, each from a time on."""
        text = self.prompt
        return text if isinstance(text, tuple) else (types.TimedText(start=0, text=text),)

    @property
    def forced_size(self) -> tuple[int, int] | None:
        """(width, height) from `frame_size`; None for auto."""
        if self.frame_size == "auto":
            return None
        width, height = self.frame_size.split("x")
        return int(width), int(height)

    @property
    def weight_sources(self) -> dict[str, str | None]:
        """Folders and files of the released checkpoint, by the fields that may name them."""
        return {name: getattr(self, name) for name in (*WEIGHT_FOLDERS, *RELEASED_ONLY)}
