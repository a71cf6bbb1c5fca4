"""Names what a file is that was given in place of a request or a sweep."""

from collections.abc import Collection

from talkinghead_lab.errors import InvalidRequest

SWEEP_COMMAND = "`python -m talkinghead_lab sweep FILE --out FOLDER`"
# What holds all of these names is no request but this; what to do with it.
NO_REQUESTS = (
    ({"axes"}, "a sweep", f"Run it with {SWEEP_COMMAND}."),
    ({"base"}, "a sweep", f"Run it with {SWEEP_COMMAND}."),
    ({"request", "resolved"}, "the record of a run", "The request is in request.yaml beside it."),
    ({"request", "video"}, "the record of a run", "The request is in request.yaml beside it."),
    ({"cells", "nbformat"}, "a notebook", "Run it with papermill."),
)


def check_is_request(names: Collection[str]) -> None:
    """Refuse the names of something else than a request.

    Raises:
        InvalidRequest: it says what they are.
    """
    for marks, kind, remedy in NO_REQUESTS:
        if marks <= set(names):
            raise InvalidRequest(f"this is {kind}, not a request", received=_listed(names), remedy=remedy)


def check_is_sweep(names: Collection[str], sections: Collection[str], fields: Collection[str]) -> None:
    """Refuse the names of something else than a sweep.

    Args:
        names: at the top of the file.
        sections: of a sweep.
        fields: of a request.

    Raises:
        InvalidRequest: it says what they are.
    """
    found = set(names)
    if found and not found & set(sections):
        for marks, kind, remedy in NO_REQUESTS:
            if marks <= found:
                raise InvalidRequest(f"this is {kind}, not a sweep", received=_listed(names), remedy=remedy)
        if found & set(fields):
            raise InvalidRequest(
                "this is a request, not a sweep",
                received=_listed(names),
                remedy="Run it with `python -m talkinghead_lab generate FILE`; a sweep has it under `base`.",
            )
    for name in names:
        if name in fields and name not in sections:
            raise InvalidRequest(
                "this is a field of a request, not a section of a sweep",
                received=name,
                allowed=", ".join(sections),
                remedy="Put it under `base`.",
                field=name,
            )


def _listed(names: Collection[str]) -> str:
    """The first names."""
    shown = ", ".join(list(names)[:5])
    return shown if len(names) <= 5 else f"{shown}, …"
