"""Finished runs for tests that read them: copies of the run of version 0.1.0, with changes."""

import json
import shutil
from pathlib import Path
from typing import Any

from talkinghead_lab.foundation.schema import SCHEMA_VERSION
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs.history import PastRun, run_in

OLD = Path(__file__).parent / "files-0.1.0"


def finished_run(
    folder: Path,
    changes: dict[str, Any] | None = None,
    measures: dict[str, float | None] | None = None,
    **parts: Any,
) -> PastRun:
    """A finished run.

    Args:
        folder: of the run.
        changes: fields of its request.
        measures: values of measures; None: it was not taken.
        parts: parts of its record; mappings are merged into what is there.
    """
    shutil.copytree(OLD, folder)
    params = GenerationParams.from_yaml(folder / "request.yaml", **(changes or {}))
    (folder / "request.yaml").write_text(params.to_yaml(versioned=True))
    record = json.loads((folder / "run.json").read_text())
    record |= {"request": params.model_dump(mode="json"), "schema_version": SCHEMA_VERSION}
    for measure in record["measures"]:
        if measure["name"] in (measures or {}):
            value = measures[measure["name"]]
            measure |= {"value": value, "why_not": "nobody is seen" if value is None else None}
    for name, part in parts.items():
        record[name] = {**record.get(name, {}), **part} if isinstance(part, dict) else part
    (folder / "run.json").write_text(json.dumps(record))
    return run_in(folder)
