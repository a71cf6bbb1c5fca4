"""Download several files at once, under one progress bar, until one fails or the user stops them."""

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Self

from tqdm.auto import tqdm

from talkinghead_lab.errors import Stopped
from talkinghead_lab.weights.download.hub import RemoteFile

AT_ONCE = 4  # a single connection does not fill a fast line, and one file is hashed while others arrive

SECONDS_TO_END = 0.5  # for each thread; one that receives bytes needs less


class Progress:
    """The bar of all files. Once `stop` is called, a download ends as soon as it would advance the bar.

    Args:
        total: bytes of all files.
        arrived: how many of them are there.
    """

    def __init__(self, total: int, arrived: int) -> None:
        # disable=None: no bar without a terminal.
        self._bar = tqdm(total=total, initial=arrived, unit="B", unit_scale=True, disable=None, leave=False)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def add(self, count: int) -> None:
        """Advance the bar by a number of bytes, or put it back.

        Raises:
            Stopped: `stop` has been called.
        """
        if self._stopped.is_set():
            raise Stopped("the download was stopped")
        with self._lock:
            self._bar.update(count)

    def stop(self) -> None:
        """End all downloads, and the bar."""
        self._stopped.set()
        self._bar.close()

    def file_bar(self) -> type[Any]:
        """A class that huggingface_hub takes for the bar of one file."""
        progress = self

        class FileBar:
            def __init__(self, **_: object) -> None:
                pass

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: int) -> None:
                progress.add(count)

        return FileBar


def transfer(
    files: Sequence[RemoteFile], fetch_one: Callable[[RemoteFile], None], progress: Progress
) -> None:
    """Call `fetch_one` for every file, in threads.

    When one fails or Ctrl-C arrives, the others end at their next bytes. One whose connection hangs is left
    behind, and ends with the process at the latest.

    Raises:
        Exception: the first that `fetch_one` raises.
    """
    waiting: SimpleQueue[RemoteFile] = SimpleQueue()
    for file in files:
        waiting.put(file)
    results: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while True:
                progress.add(0)
                fetch_one(waiting.get_nowait())
                results.put(None)
        except Empty:
            pass
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, len(files)))]
    try:
        for thread in threads:
            thread.start()
        for _ in files:
            error = results.get()
            if error is not None:
                raise error
    finally:
        progress.stop()
        for thread in threads:
            thread.join(SECONDS_TO_END)
