"""The service's environment variables, and how they complete the fields of an HTTP request."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from talkinghead_lab.errors import InvalidRequest
from talkinghead_lab.params import GenerationParams

PORT = 8200
MOST = 1e9  # seconds, hours, MiB or GiB: as good as no limit, and no timer overflows
FRAME_SIZES = {"infinitetalk-480": "1024x576", "infinitetalk-720": "1280x720"}


HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")


def _names(value: str) -> list[str]:
    return [name.strip().lower() for name in value.split(",") if name.strip()]


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class ServiceSettings(BaseSettings):
    """Settings of the service. Each is read from the environment variable of its name in capitals.

    Raises:
        InvalidRequest: from `read`, if a variable has an invalid value.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, str_strip_whitespace=True, allow_inf_nan=False
    )

    ckpt_dir: Path | None = Field(None, description="Wan2.1-I2V-14B folder; unset: the bundled model")
    wav2vec_dir: Path | None = Field(None, description="wav2vec2 folder")
    infinitetalk_dir: Path | None = Field(None, description="InfiniteTalk folder or file")
    weights_dir: Path | None = Field(
        None, description="folder with all weight files, searched by content, in place of the three folders"
    )
    num_persistent_param_in_dit: int | None = Field(
        None, ge=0, le=10**12, description="transformer weights kept on the GPU; 0: least memory, unset: all"
    )
    motion_frame: int = Field(9, ge=1, le=997, description="overlap frames, if the request sets none")
    chunk_frames: int = Field(81, ge=5, le=1001, description="frames per chunk")
    frame_size: str | None = Field(
        None, description="WIDTHxHEIGHT; unset: 1024x576 or 1280x720, with the bundled model 160x160"
    )

    shared_dir: Path = Field(Path("/data/shared"), description="folder of portraits and recordings")
    output_dir: Path = Field(Path("/output"), description="folder of finished videos")
    keep_hours: float = Field(168, gt=0, le=MOST, description="age at which a finished run is removed")
    keep_gib: float = Field(
        50, gt=0, le=MOST, description="total size above which the oldest runs are removed"
    )

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(PORT, ge=0, le=65535, description="port to listen on; 0: any free port")
    published_address: str | None = Field(
        None, description="address at which a container's port is published; unset: that of HOST"
    )
    token: SecretStr | None = Field(
        None, description="bearer token that clients must send; needed unless the address is a loopback one"
    )
    allowed_hosts: str = Field(
        "",
        description="host names, separated by commas, by which clients may address the service besides "
        "`localhost`, 127.0.0.1 and HOST; `*.example.com`: all names below, `*`: any",
    )
    log_format: Literal["json", "text"] = Field(
        "json", description="`json` or `text`: form of the log's lines"
    )
    queue_length: int = Field(8, ge=0, le=10_000, description="maximum number of waiting requests")
    idle_seconds: float = Field(900, gt=0, le=MOST, description="idle time after which the model is unloaded")
    stuck_seconds: float = Field(
        1800,
        gt=0,
        le=MOST,
        description="time without progress after which the process ends; loading, a step, and the work after "
        "the last step must each take less",
    )
    body_seconds: float = Field(
        10,
        gt=0,
        le=MOST,
        description="time limit for receiving a request's header, and its body without files",
    )
    upload_seconds: float = Field(
        600, gt=0, le=MOST, description="time limit for receiving a request with files"
    )
    callback_hosts: str = Field(
        "", description="host names, separated by commas, that `callback_url` may name; unset: none"
    )
    callback_secret: SecretStr | None = Field(
        None, description="secret with which callbacks are signed; needed with CALLBACK_HOSTS"
    )

    longest_seconds: float = Field(600, gt=0, le=7200, description="maximum duration of a recording")
    largest_pixels: int = Field(
        40_000_000, gt=0, description="maximum number of pixels of a portrait or a driving video's frame"
    )
    largest_mib: float = Field(1024, gt=0, le=MOST, description="maximum size of an input file")
    media_seconds: float = Field(120, gt=0, le=MOST, description="time limit for decoding an input file")
    media_mib: float = Field(
        1536,
        ge=64,
        le=MOST,
        description="memory limit for decoding an input file; a minute of sound takes 27 MiB",
    )

    @classmethod
    def read(cls, **overrides: Any) -> "ServiceSettings":
        """Read the environment; keyword arguments take precedence."""
        try:
            return cls(**overrides)
        except ValidationError as error:
            finding = error.errors(include_url=False)[0]
            message = finding["msg"].removeprefix("Value error, ")
            if not finding["loc"]:
                # Not what was received: that is all settings, the token among them.
                raise InvalidRequest(f"the settings do not fit together: {message}") from None
            variable = str(finding["loc"][0])
            raise InvalidRequest(
                f"the variable {variable.upper()} is not valid",
                received=None if variable in ("token", "callback_secret") else repr(finding["input"])[:80],
                allowed=message,
            ) from None

    @field_validator("allowed_hosts", "callback_hosts")
    @classmethod
    def _check_hosts(cls, value: str) -> str:
        """Refuse what is no name of a host, such as a URL."""
        for name in _names(value):
            if not HOST_NAME.fullmatch(name):
                raise ValueError("host names without scheme and port, such as `video.example.com`")
        return value

    @field_validator("token", "callback_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        """Strip white space, which comes from files; refuse what is not sent in one way only."""
        if value is None:
            return None
        secret = value.get_secret_value().strip()
        if not (secret and secret.isascii() and secret.isprintable()):
            raise ValueError("printable ASCII characters, at least one")
        return SecretStr(secret)

    @model_validator(mode="after")
    def _check_defaults(self) -> "ServiceSettings":
        """Build a request from the defaults, so that an invalid combination fails at startup."""
        folders = (self.ckpt_dir, self.wav2vec_dir, self.infinitetalk_dir)
        if any(folders) and (self.weights_dir or not all(folders)):
            raise ValueError(
                "set WEIGHTS_DIR alone, or CKPT_DIR, WAV2VEC_DIR and INFINITETALK_DIR together, or none"
            )
        for resolution in FRAME_SIZES:
            self.params(audio_path="/a", image_path="/i", resolution=resolution)
        return self

    @model_validator(mode="after")
    def _refuse_strangers(self) -> "ServiceSettings":
        """Without a token, anyone who reaches the port could use it: only this machine may."""
        address = self.published_address or self.host
        if self.token is None and not _is_loopback(address):
            raise ValueError(
                f"other machines reach {address}: set TOKEN, or HOST=127.0.0.1, or, in a container whose "
                "port is published for this machine alone, PUBLISHED_ADDRESS=127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _callbacks_are_signed(self) -> "ServiceSettings":
        if self.callback_host_names and self.callback_secret is None:
            raise ValueError("CALLBACK_HOSTS needs CALLBACK_SECRET, with which callbacks are signed")
        if any("*" in name for name in self.callback_host_names):
            raise ValueError("CALLBACK_HOSTS takes full host names only")
        return self

    @property
    def callback_host_names(self) -> tuple[str, ...]:
        """Hosts that callbacks may go to."""
        return tuple(_names(self.callback_hosts))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts that requests may name besides the loopback ones."""
        own = () if self.host in ("0.0.0.0", "::") else (f"[{self.host}]" if ":" in self.host else self.host,)
        return (*own, *_names(self.allowed_hosts))

    @property
    def released(self) -> bool:
        """Whether released weights are configured; otherwise the bundled model is used."""
        return self.ckpt_dir is not None or self.weights_dir is not None

    def params(self, **fields: Any) -> GenerationParams:
        """Complete the fields of an HTTP request to a request for the pipeline.

        Raises:
            InvalidRequest: a value is out of range.
        """
        own: dict[str, Any] = {"motion_frame": self.motion_frame, "chunk_frames": self.chunk_frames}
        resolution = fields.get("resolution", GenerationParams.model_fields["resolution"].default)
        if size := self.frame_size or (FRAME_SIZES.get(resolution, "auto") if self.released else None):
            own["frame_size"] = size
        if self.weights_dir is not None:
            own |= {"checkpoint": "released", "weights": str(self.weights_dir)}
        elif self.released:
            own |= {"checkpoint": "released", "ckpt_dir": str(self.ckpt_dir)}
            own |= {"wav2vec_dir": str(self.wav2vec_dir), "infinitetalk_dir": str(self.infinitetalk_dir)}
        return GenerationParams(**(own | fields))
