"""Read JSON that stands beside weights or in them."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from talkinghead_lab.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read as JSON ({error})", received=str(path)) from None
    return parse_json(content, str(path))


def parse_json(content: bytes | str, source: str) -> dict[str, Any]:
    """The object in some JSON; errors as for `read_json`, where `source` says what was read."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as JSON ({error})", received=source) from None
    if not isinstance(fields, dict):
        raise CheckpointError("is not a JSON object", received=source)
    return fields


def parse_base64(encoded: str, source: str) -> dict[str, Any]:
    """The object in JSON that is encoded as base64; errors as for `parse_json`."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointError(f"cannot be read as base64 ({error})", received=source) from None
    return parse_json(content, source)
