"""The request: one frozen, validated model for YAML files, notebooks, widgets, shell and HTTP."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from talkinghead_lab import defaults, request_text
from talkinghead_lab.agreement import check_agreement
from talkinghead_lab.foundation.field_errors import first_error
from talkinghead_lab.foundation.file_kinds import check_is_request
from talkinghead_lab.request_fields import RELEASED_ONLY, RequestFields


class GenerationParams(RequestFields):
    """All inputs and settings of a video; equal requests give equal frames on the same machine.

    Fields that are left out take the values of the checkpoint, see `defaults`.
    Relative paths start from the working directory, or from its parent in the project's `notebooks/`.

    Raises:
        InvalidRequest: A field is unknown (the nearest name is given), out of range, or contradicts another.
    """

    def __init__(self, **fields: Any) -> None:
        check_is_request(fields)
        values = {name: request_text.typed_value(name, value) for name, value in fields.items()}
        if any(values.get(name) for name in RELEASED_ONLY):
            values.setdefault("checkpoint", "released")
        checkpoint = values.get("checkpoint", type(self).model_fields["checkpoint"].default)
        if values.get("sample_shift", 0) is None:
            del values["sample_shift"]  # unset: that of the checkpoint
        if isinstance(levels := values.get("sigmas"), list | tuple) and levels:
            values.setdefault("diffusion_steps", len(levels))
        try:
            super().__init__(**{**defaults.of_checkpoint(checkpoint), **values})
        except ValidationError as error:
            raise first_error(error, type(self).model_fields) from None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        check_agreement(self)
        return self

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with `changes` applied."""
        return type(self)(**(self.model_dump() | changes))

    @classmethod
    def defaults_of(cls, checkpoint: str) -> dict[str, Any]:
        """The values of all fields that a request on a checkpoint can leave out."""
        fields = {name: field.default for name, field in cls.model_fields.items() if not field.is_required()}
        return {**fields, **defaults.of_checkpoint(checkpoint)}

    def to_yaml(self, *, complete: bool = False, versioned: bool = False) -> str:
        """Return YAML that `from_yaml` and papermill can read.

        Args:
            complete: Include fields at their defaults.
            versioned: Begin with the version, so that later versions of the package know its defaults.
        """
        left_out = {} if complete else self.defaults_of(self.checkpoint)
        fields = {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name not in left_out or left_out[name] != getattr(self, name)
        }
        return request_text.to_yaml(fields, versioned=versioned)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a parameter file, or the preset of that name; `overrides` replace its values."""
        return cls(**(request_text.read_yaml(path) | overrides))

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], besides: Collection[str] = ()) -> Self:
        """Build the request from a notebook's `globals()`; None stands for the default.

        Papermill does not check the names it injects. Therefore an unknown name in the parameter cell, or
        injected by papermill, is rejected. Variables of other cells are free. Without a history of cells,
        as in a script, every plain literal counts as a parameter.

        Args:
            namespace: Variables of the notebook.
            besides: Names of parameters that belong to the notebook, not to the request.
        """
        return cls(**request_text.of_notebook(namespace, besides))

    @classmethod
    def from_video(cls, path: str | Path) -> Self:
        """Read the request from the metadata of a video that this package generated."""
        return cls(**request_text.of_video(path))
