"""Find the files of a checkpoint.

The embedded and the released checkpoint have the same layout:

    CKPT_DIR/           config.json, diffusion_pytorch_model*.safetensors, Wan2.1_VAE, models_t5_…,
                        models_clip_…, google/umt5-xxl/ (tokenizer)
    WAV2VEC_DIR/        config.json, model.safetensors or pytorch_model.bin
    INFINITETALK_DIR/   single/infinitetalk.safetensors, multi/infinitetalk.safetensors; or one file: the
                        adapter, or a complete quantised transformer with a .json map of the same stem

Weight files without a suffix above are `.safetensors` or `.pth`. A `.json` of the same stem may hold what
tensor shapes do not show (head counts, latent statistics).
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from talkinghead_lab.errors import CheckpointError
from talkinghead_lab.foundation.paths import EMBEDDED_FOLDER
from talkinghead_lab.weights import search
from talkinghead_lab.weights.formats.names.recognition import ROLES
from talkinghead_lab.weights.formats.network_file import network_content
from talkinghead_lab.weights.formats.quanto import quanto_map
from talkinghead_lab.weights.formats.shards import shards_of, with_shards

EMBEDDED_WEIGHTS = EMBEDDED_FOLDER / "weights"
TRANSFORMER = "diffusion_pytorch_model"
VAE = "Wan2.1_VAE"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16"
IMAGE_ENCODER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"
STEMS = {"vae": VAE, "text_encoder": TEXT_ENCODER, "image_encoder": IMAGE_ENCODER}
SPEECH_PICKLE = "pytorch_model.bin"  # on the main branch of the speech encoder's repository
TOKENIZER = Path("google", "umt5-xxl")
ADAPTER = Path("infinitetalk.safetensors")
PAIRS_ADAPTER = Path("multi", ADAPTER)
RELEASED_REPOSITORIES = {
    "ckpt_dir": "Wan-AI/Wan2.1-I2V-14B-480P",
    "wav2vec_dir": "TencentGameMate/chinese-wav2vec2-base",
    "infinitetalk_dir": "MeiGen-AI/InfiniteTalk",
}

# Folders that hold a role, where it is not the Wan2.1 folder, and what records of runs call them.
FOLDER_OF = {"speech_encoder": "wav2vec_dir", "adapter": "infinitetalk_dir"}
PLACES = {"speech_encoder": "wav2vec2", "adapter": "infinitetalk"}
WEIGHTS_VARIABLE = "WEIGHTS_DIR"


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the networks of a checkpoint are: in three folders of the released layout, or in files by role.

    Args:
        wan: the Wan2.1 folder.
        wav2vec2: the folder of the speech encoder.
        infinitetalk: the InfiniteTalk file.
        named: the files of each of `ROLES`, in place of the folders; several are the shards of one. Also
            `tokenizer`, a folder or a file that holds one.
        problems: why the others of these have no file.
    """

    wan: Path = Path()
    wav2vec2: Path = Path()
    infinitetalk: Path = Path()
    named: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    problems: Mapping[str, CheckpointError] = field(default_factory=dict)

    def of_role(self, role: str) -> tuple[Path, ...]:
        """The file of a role, or its shards.

        Raises:
            CheckpointError: it is missing.
        """
        if role in self.problems:
            raise self.problems[role]
        if role in self.named:
            return self.named[role]
        if role == "adapter" or (role == "transformer" and self._is_merged):
            return (self.infinitetalk,)
        if role == "transformer":
            return tuple(_shards(self.wan, TRANSFORMER))
        if role == "speech_encoder":
            return (_weights_file(self.wav2vec2, "model", SPEECH_PICKLE),)
        if role == "text_encoder" and (quantised := self._quantised_text_encoder()):
            return (quantised,)
        return (_weights_file(self.wan, STEMS[role]),)

    @cached_property
    def _is_merged(self) -> bool:
        """Whether the InfiniteTalk file also holds the transformer; reads its header."""
        return "adapter" not in self.problems and "transformer" in network_content(self.infinitetalk).roles

    def _quantised_text_encoder(self) -> Path | None:
        """The text encoder beside a quantised transformer, as InfiniteTalk releases both."""
        maps = sorted(self.infinitetalk.parent.glob("t5_map_*.json"))
        if not maps or quanto_map(self.infinitetalk) is None:
            return None
        return maps[0].with_name(maps[0].name.replace("t5_map_", "t5_")).with_suffix(".safetensors")

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer, or a file that holds it; errors as for `of_role`."""
        if "tokenizer" in self.problems:
            raise self.problems["tokenizer"]
        if "tokenizer" in self.named:
            return self.named["tokenizer"][0]
        if (self.wan / TOKENIZER / "tokenizer.json").is_file():
            return self.wan / TOKENIZER
        return search.tokenizer_of({"text_encoder": self.of_role("text_encoder")}, {})

    @property
    def is_absent(self) -> bool:
        """Whether it is no checkpoint: sizes are those of the released networks, see `released_sizes`."""
        return self == CheckpointFiles()

    @property
    def transformer_config(self) -> Path:
        """The config.json of the transformer; it need not exist."""
        folder = self.named["transformer"][0].parent if "transformer" in self.named else self.wan
        return folder / "config.json"

    def in_words(self) -> dict[str, str]:
        """The folders and files, by the fields of a request that name them."""
        folders = {"ckpt_dir": self.wan, "wav2vec_dir": self.wav2vec2, "infinitetalk_dir": self.infinitetalk}
        words = {name: str(path) for name, path in folders.items() if path != Path()}
        return words | {role: ", ".join(map(str, paths)) for role, paths in self.named.items()}

    def __str__(self) -> str:
        return ", ".join(self.in_words().values())


def locate(
    checkpoint: str, speakers: int, sources: Mapping[str, str | None], roles: Collection[str] = ROLES
) -> CheckpointFiles:
    """Find the files of a checkpoint.

    Args:
        checkpoint: `embedded` or `released`.
        speakers: 1 or 2; each has an adapter of its own.
        sources: what a request says of its weights, by field: `weights`, one of `ROLES`, or a folder of
            `RELEASED_REPOSITORIES`. What it leaves out is read from the environment variables.
        roles: those to find, in the order of `ROLES`.

    Raises:
        CheckpointError: a file is not named anywhere, does not exist, or several could be meant.
    """
    folders = places(checkpoint, sources)
    found = search.candidates(folders["weights"]) if "weights" in folders else []
    files = located(found, folders, speakers, sources, roles)
    for problem in files.problems.values():
        raise problem
    return files


def places(checkpoint: str, sources: Mapping[str, str | None]) -> dict[str, Path]:
    """The folders of a checkpoint, by the fields that name them; arguments as for `locate`.

    Either `weights` alone, which is searched, or those of `RELEASED_REPOSITORIES` that are named.
    """
    if checkpoint == "embedded":
        return {name: EMBEDDED_WEIGHTS / name for name in RELEASED_REPOSITORIES}
    given = {name: path for name, path in sources.items() if path}
    if not given.keys() & {"weights", *RELEASED_REPOSITORIES} and os.environ.get(WEIGHTS_VARIABLE):
        given["weights"] = os.environ[WEIGHTS_VARIABLE]
    if "weights" in given:
        return {"weights": Path(given["weights"])}
    named = {name: given.get(name) or os.environ.get(name.upper()) for name in RELEASED_REPOSITORIES}
    return {name: Path(path) for name, path in named.items() if path}


def has_files(checkpoint: str, sources: Mapping[str, str | None]) -> bool:
    """Whether there is any weight file where a checkpoint is to be; arguments as for `locate`."""
    folders = places(checkpoint, sources).values()
    return any(sources.get(role) for role in ROLES) or any(map(search.has_weights, folders))


def located(
    found: Sequence[search.Candidate],
    folders: Mapping[str, Path],
    speakers: int,
    sources: Mapping[str, str | None],
    roles: Collection[str] = ROLES,
) -> CheckpointFiles:
    """The files of a checkpoint, as far as there are any; the others are its `problems`.

    Args:
        found: the candidates of `folders["weights"]`, if that is searched.
        folders: from `places`.
        speakers, sources, roles: see `locate`.
    """
    named: dict[str, tuple[Path, ...]] = {}
    problems: dict[str, CheckpointError] = {}
    for role in ROLES:
        try:
            if path := sources.get(role):
                named[role] = _named_file(role, Path(path))
            elif role == "adapter" and role in _roles(named.get("transformer", ())):
                named[role] = named["transformer"]  # one file holds both
        except CheckpointError as problem:
            problems[role] = problem
    if "weights" in folders:
        chosen, missing = search.chosen(found, folders["weights"], speakers, named, roles)
        return CheckpointFiles(named=chosen, problems=missing | problems)
    held: dict[str, Path] = {}
    for role in roles:
        name = FOLDER_OF.get(role, "ckpt_dir")
        try:
            if role not in named and role not in problems:
                held[name] = _folder(name, folders)
                held[name] = _adapter_file(held[name], speakers) if role == "adapter" else held[name]
        except CheckpointError as problem:
            problems[role] = problem
    if "text_encoder" in named or "text_encoder" in problems:
        try:
            named["tokenizer"] = (search.tokenizer_of(named, problems),)
        except CheckpointError as problem:
            problems["tokenizer"] = problem
    wan, speech, adapter = (
        held.get(name, Path()) for name in ("ckpt_dir", "wav2vec_dir", "infinitetalk_dir")
    )
    return CheckpointFiles(wan, speech, adapter, named, problems)


def _roles(paths: tuple[Path, ...]) -> tuple[str, ...]:
    return network_content(*paths).roles if paths else ()


def _named_file(role: str, path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        raise CheckpointError(
            f"`{role}` names a folder, not a file",
            received=str(path),
            remedy="Name the weight file, the first of its shards or their index; `weights` names a folder.",
        )
    if not path.is_file():
        raise CheckpointError(f"`{role}` names no file", received=str(path), remedy="Check the path.")
    return with_shards(path)


def _folder(name: str, folders: Mapping[str, Path]) -> Path:
    if name not in folders:
        raise CheckpointError(
            f"the released checkpoint needs {name}",
            remedy=f"Set `weights` or {WEIGHTS_VARIABLE} to a folder with all weight files, or the parameter "
            f"{name} or the variable {name.upper()}. "
            "`python -m talkinghead_lab fetch FOLDER` downloads the released weights.",
        )
    if not folders[name].exists():
        raise CheckpointError(
            f"{name} does not exist",
            received=str(folders[name]),
            remedy="Check the path; `python -m talkinghead_lab fetch FOLDER` downloads released weights.",
        )
    return folders[name]


def _adapter_file(path: Path, speakers: int) -> Path:
    if path.is_file():
        return path
    kind = "single" if speakers == 1 else "multi"
    candidates = [path / kind / "infinitetalk.safetensors", path / "infinitetalk.safetensors"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"no InfiniteTalk weights for {speakers} speaker(s)",
        received=str(path),
        allowed=f"a folder with {kind}/infinitetalk.safetensors, or the file itself",
    )


def _shards(folder: Path, stem: str) -> list[Path]:
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return shards_of(index)
    files = {each for path in folder.glob(f"{stem}*.safetensors") for each in with_shards(path)}
    if not files:
        raise CheckpointError("no transformer weights", received=str(folder), allowed=f"{stem}*.safetensors")
    return sorted(files)


def weight_files(files: CheckpointFiles) -> dict[str, Path]:
    """Every file that the loaders read, by a name that does not depend on the checkpoint's location.

    Raises:
        CheckpointError: a weight file is missing.
    """
    found: dict[str, Path] = {}
    for role in ROLES:
        place = role if role in files.named else PLACES.get(role, "wan")
        for path in files.of_role(role):
            found[f"{place}/{path.name}"] = path
            beside = [path.with_suffix(".json"), *path.parent.glob("*config.json")]
            beside += path.parent.glob("t5_map_*.json") if role == "text_encoder" else []
            found |= {f"{place}/{each.name}": each for each in beside if each.is_file()}
    if "transformer" not in files.named and files.transformer_config.is_file():
        found["wan/config.json"] = files.transformer_config
    tokenizer = files.tokenizer
    place = "tokenizer" if "tokenizer" in files.named else f"wan/{TOKENIZER}"
    parts = tokenizer.rglob("*") if tokenizer.is_dir() else [tokenizer]
    found |= {f"{place}/{path.name}": path for path in parts if path.is_file()}
    return dict(sorted(found.items()))


def _weights_file(folder: Path, stem: str, *others: str) -> Path:
    for name in (f"{stem}.safetensors", f"{stem}.pth", *others):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        "no such weight file", received=str(folder / f"{stem}.pth"), allowed=".pth or .safetensors"
    )
