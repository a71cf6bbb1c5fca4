"""Tiny real networks in the released layout, and requests that use them."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import soundfile

from talkinghead_lab.params import GenerationParams
from tests.parity import golden

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_configure():
    """Undo what `nohup` and background jobs of scripts ignore: some tests send these signals."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config, items):
    """On several workers, files with many slow tests start first: no worker is left with them at the end."""
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_sessionfinish(session):
    """A worker sends its parity errors to the process that prints the report."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["comparisons"] = golden.comparisons


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    golden.comparisons += map(tuple, getattr(node, "workeroutput", {}).get("comparisons", []))


def pytest_terminal_summary(terminalreporter):
    """Print the table of parity errors."""
    if golden.comparisons:
        terminalreporter.section(f"parity with the reference ({golden.FOLDER.name}, salt {golden.SALT!r})")
        for case, error, bound in sorted(golden.comparisons):
            terminalreporter.write_line(f"{case:40} {error:9.2e}  (bound {bound:.0e})")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Digests and encodings of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALKINGHEAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def process_coverage() -> Iterator[dict[str, str]]:
    """The variable that has a process measure its coverage; for services only, as it doubles import times."""
    name = "COVERAGE_PROCESS_CONFIG"
    with pytest.MonkeyPatch.context() as patch:
        found = {name: os.environ[name]} if name in os.environ else {}
        patch.delenv(name, raising=False)
        yield found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    """A Ray cluster of two workers on this machine, which `auto` finds."""
    ray = pytest.importorskip("ray")
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))  # not in the user's home
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for attempts_left in (
            2,
            1,
            0,
        ):  # on a busy machine Ray's own 15 seconds for its agent can be too short
            try:
                ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
                break
            except Exception:
                ray.shutdown()
                if not attempts_left:
                    raise
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of seeded random weights in the released layout: every file that a real one has."""
    from talkinghead_lab.training.networks import build_untrained, vocabulary
    from talkinghead_lab.weights.writing import write_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, build_untrained(0), vocabulary())
    return folder


@pytest.fixture(scope="session")
def recording(tmp_path_factory) -> Callable[[float], str]:
    """Make a WAV file of a hummed tone of some seconds, 16 kHz mono, and give its path."""
    folder = tmp_path_factory.mktemp("recordings")

    def make(seconds: float) -> str:
        path = folder / f"{seconds}.wav"
        if not path.exists():
            times = np.arange(round(16_000 * seconds)) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * 150 * times) * (1 + np.sin(2 * np.pi * 3 * times)) / 2
            soundfile.write(path, tone, 16_000)
        return str(path)

    return make


@pytest.fixture(scope="session")
def request_for(checkpoint, recording) -> Callable[..., GenerationParams]:
    """Make a small request on it: 25 frames of 32x32 in chunks of 9, one step."""

    def make(**changes) -> GenerationParams:
        fields = {
            "audio_path": recording(1.0),
            "image_path": "sample:portrait",
            "prompt": "a calm presenter",
            "checkpoint": "released",
            "ckpt_dir": str(checkpoint / "ckpt_dir"),
            "wav2vec_dir": str(checkpoint / "wav2vec_dir"),
            "infinitetalk_dir": str(checkpoint / "infinitetalk_dir"),
            "frame_size": "32x32",
            "chunk_frames": 9,
            "motion_frame": 5,
            "diffusion_steps": 1,
        }
        return GenerationParams(**(fields | changes))

    return make
