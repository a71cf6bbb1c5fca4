"""The version of files that later versions of the package must still read: requests, records, sweeps."""

from collections.abc import Mapping
from typing import Any

from talkinghead_lab.errors import InvalidRequest

# 1: what a request leaves out has one default for all checkpoints. Files without a version, written by 0.1.0,
# differ from it by the field alone.
# 2: what a request leaves out follows its checkpoint.
SCHEMA_VERSION = 2
FIELD = "schema_version"


def versioned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file to be written, behind its version."""
    return {FIELD: SCHEMA_VERSION, **fields}


def split(fields: Mapping[str, Any], unwritten: int = SCHEMA_VERSION) -> tuple[int, dict[str, Any]]:
    """The version of a file that was read, and its other fields.

    Args:
        fields: of the file.
        unwritten: version of a file that states none.

    Raises:
        InvalidRequest: a later version of the package wrote the file.
    """
    version = fields.get(FIELD, unwritten)
    if isinstance(version, str) and version.isdecimal():  # from a parameter file
        version = int(version)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise InvalidRequest(
            "the file has an unknown version",
            received=f"{FIELD} {version}",
            allowed=f"1 to {SCHEMA_VERSION}",
            remedy="Update talkinghead_lab, or check the file if no version wrote this.",
        )
    return version, {name: value for name, value in fields.items() if name != FIELD}
