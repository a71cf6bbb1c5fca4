"""The version of files that later versions of the package must still read: requests, records, sweeps."""

from collections.abc import Mapping
from typing import Any

from talkinghead_lab.errors import InvalidRequest

SCHEMA_VERSION = 1  # files without one, written by 0.1.0, differ from it by the field alone
FIELD = "schema_version"


def versioned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file to be written, behind its version."""
    return {FIELD: SCHEMA_VERSION, **fields}


def without_version(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file that was read, without its version.

    Raises:
        InvalidRequest: a later version of the package wrote the file.
    """
    version = fields.get(FIELD, SCHEMA_VERSION)
    if isinstance(version, str) and version.isdecimal():  # from a parameter file
        version = int(version)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InvalidRequest(
            "the file has an unknown version",
            received=f"{FIELD} {version}",
            allowed=f"up to {SCHEMA_VERSION}",
            remedy="Update talkinghead_lab.",
        )
    return {name: value for name, value in fields.items() if name != FIELD}
