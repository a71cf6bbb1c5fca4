"""Which variables of a running notebook are its parameters: a kernel knows the source of cells, not tags."""

import ast
from collections.abc import Mapping
from typing import Any

INJECTED = "# Parameters"  # first line of the cell that papermill adds
LITERALS = (str, int, float, bool, list, tuple, dict)


def literals(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a notebook's `globals()`, without IPython's own and without None."""
    of_ipython = {"In", "Out", "exit", "quit", "get_ipython"}
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, LITERALS) and not name.startswith("_") and name not in of_ipython
    }


def parameter_names(namespace: Mapping[str, Any], known: set[str]) -> set[str] | None:
    """The names that the parameter cell and papermill's cell assign; None without a history of cells.

    The parameter cell assigns literals and nothing else. Of several such cells it is the one that assigns
    most of the `known` names, and of those the last, as a cell may have been changed and run again.
    """
    sources = namespace.get("In")
    assigned = [_assigned(source) for source in sources] if isinstance(sources, list) else []
    candidates = [names for names in assigned if names and names & known]
    if not candidates:
        return None
    found = max(reversed(candidates), key=lambda names: len(names & known))
    for source, names in zip(sources or [], assigned, strict=True):
        if names and str(source).startswith(INJECTED):
            found = found | names
    return found


def _assigned(source: object) -> set[str] | None:
    """The names that a cell of nothing but literal assignments sets; None for any other cell."""
    names = set()
    try:
        for statement in ast.parse(str(source)).body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
                return None
            ast.literal_eval(statement.value)
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return names
