"""The progress bar of a run, in a notebook or on stderr."""

from types import TracebackType
from typing import Self

from tqdm.auto import tqdm

from talkinghead_lab.runs.time_left import TimeLeft

# Without tqdm's own time left, which extrapolates the share of the work that is done.
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


class ProgressBar:
    """Shows how far a run is. A context manager; the bar is removed at the end."""

    def __init__(self, time_left: TimeLeft) -> None:
        self.time_left = time_left
        self.bar = tqdm(total=100, bar_format=FORMAT, leave=False, desc=time_left.place)

    def __enter__(self) -> Self:
        """Follow the run."""
        self.time_left.listeners.append(self.show)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self.time_left.listeners.remove(self.show)
        self.bar.close()

    def show(self) -> None:
        """Draw the current state."""
        self.bar.n = round(100 * self.time_left.fraction())
        self.bar.set_description_str(self.time_left.status)
