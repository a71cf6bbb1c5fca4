"""What only the path of a weight file tells, because the header of another model is the same.

MultiTalk has InfiniteTalk's architecture, Wan2.1 I2V has one for 480P and 720P, and fine-tunes have that of
their base. A file that a request names is not doubted.
"""

from pathlib import Path

# Role → part of a path → the model that such a path means.
SAME_HEADER: dict[str, dict[str, str]] = {
    "transformer": {
        "720p": "Wan2.1 I2V 14B for 720P",
        "fun": "Wan Fun InP",
        "skyreels": "SkyReels",
        "wanmove": "Wan-Move",
        "anisora": "AniSora",
    },
    "adapter": {"multitalk": "MultiTalk", "skyreels": "SkyReels-V3"},
    "vae": {"qwen": "the autoencoder of Qwen-Image"},
    "speech_encoder": {"960h": "wav2vec2-base-960h (English)", "hubert": "HuBERT"},
}
# Role → what the names of its files say, whatever the folder is called.
OWN_NAME = {"adapter": "infinitetalk"}


def doubt(role: str, path: Path) -> str | None:
    """Which other model the path of a file says that it holds; None if it says nothing of the kind.

    Args:
        role: what names and shapes make of the file.
        path: relative to the folder that is searched.
    """
    words = str(path).lower()
    if OWN_NAME.get(role, "/") in path.name.lower():
        return None
    return next((model for part, model in SAME_HEADER.get(role, {}).items() if part in words), None)
