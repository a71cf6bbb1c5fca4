"""Two processes share a forward, and a whole run, and give what one gives."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from talkinghead_lab.bench.forwards import relative_error
from talkinghead_lab.bench.sizes import random_conditions
from talkinghead_lab.errors import InvalidRequest, Stopped
from talkinghead_lab.foundation.latent_grid import LatentGrid
from talkinghead_lab.media.video import read_frames
from talkinghead_lab.models.dit.model import DiT
from talkinghead_lab.models.dit.sequence_parallel import SequenceParallelGroup
from talkinghead_lab.models.kernels.fp8 import FP8
from talkinghead_lab.models.lora import LoraLinear, LoraStrengths
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.runs import parallel
from talkinghead_lab.runs.generate import generate
from talkinghead_lab.sampling.chunk_sampling import noise_generator, sample_chunk
from talkinghead_lab.sampling.config import SamplingConfig, Scale, StepCacheConfig
from talkinghead_lab.sampling.step_cache import COEFFICIENTS
from talkinghead_lab.weights.quantization import multiply_fp8, quantize_linears
from talkinghead_lab.weights.reading import replace_module
from tests.models.vae.test_model import TINY, latent
from tests.models.vae.test_model import build as build_vae
from tests.parity.test_dit import build, inputs
from tests.runs.processes import forking

GUIDANCE_SCALES = {"one forward": (1.0, 1.0), "two forwards": (1.0, 2.0), "three forwards": (5.0, 4.0)}


def outcomes(model: DiT) -> dict[str, torch.Tensor]:
    """A forward for one speaker and for two, and chunks of two steps with every number of forwards."""
    times = torch.tensor([500.0])
    with torch.inference_mode():
        made = {f"{speakers} speakers": model(timesteps=times, **inputs(speakers)) for speakers in (1, 2)}
    made |= {name: chunk(model, *scales) for name, scales in GUIDANCE_SCALES.items()}
    made["guided steps, cached"] = chunk(model, 5.0, 4.0, steps=8, guidance_interval=(0.25, 0.9))
    made["zero star"] = chunk(model, (5.0, 1.0), 4.0, steps=3, zero_star=True, zero_init_steps=1)
    made["unipc"] = chunk(model, 5.0, 4.0, speakers=2, sampler="unipc")
    made["lcm"] = chunk(model, 1.0, 2.0, sampler="lcm")
    made["2 speakers, cached steps"] = chunk(model, 1.0, 1.0, speakers=2, steps=7)
    first_block = {"step_cache": StepCacheConfig(0.05, None, 3), "steps": 12}
    for name, scales in GUIDANCE_SCALES.items():
        made[f"first block, {name}"] = chunk(model, *scales, speakers=2, **first_block)
    made["first block, guided steps"] = chunk(model, 5.0, 4.0, guidance_interval=(0.25, 0.7), **first_block)
    made["lora"] = chunk(
        with_lora(build(), model.group), 1.0, 1.0, 2, lora_scales=((1.0, -1.0),), step_cache=None
    )
    quantize_linears(model.get_submodule("blocks"), FP8)
    multiply_fp8(model)
    made["fp8"] = chunk(model, 1.0, 1.0)
    return made | {"fp8, lora": chunk(with_lora(model), 1.0, 1.0, lora_scales=((0.5,),), step_cache=None)}


def with_lora(model: DiT, group: SequenceParallelGroup | None = None) -> DiT:
    """A model with low-rank pairs beside the weights of all attention and feed-forward layers."""
    model.group, model.lora_strengths = group or model.group, LoraStrengths(1, "cpu")
    generator = torch.Generator().manual_seed(0)
    for name, layer in list(model.get_submodule("blocks").named_modules()):
        if re.search(r"(self_attn|cross_attn)\.[qkvo]$|ffn\.[02]$", name):
            (out, inputs), width = layer.weight.shape, 4
            up, down = (
                0.2 * torch.randn(*size, generator=generator) for size in ((out, width), (width, inputs))
            )
            beside = LoraLinear(layer, up, down, model.lora_strengths.values[0])
            replace_module(model.get_submodule("blocks"), name, beside)
    return model


def chunk(
    model: DiT, text_guide_scale: Scale, audio_guide_scale: Scale, speakers: int = 1, steps: int = 2, **more
) -> torch.Tensor:
    """A latent chunk; unless `more` says otherwise, the step cache skips all steps but the first five."""
    more = {"step_cache": StepCacheConfig(float("inf"), COEFFICIENTS["infinitetalk-480"])} | more
    config = SamplingConfig(
        steps, shift=7.0, text_scale=text_guide_scale, audio_scale=audio_guide_scale, **more
    )
    grid = LatentGrid(9, 32, 32)
    generator = noise_generator(0, 0)
    noise = torch.randn((1, *grid.latent_shape(model.config.out_dim)), generator=generator)
    conditions = random_conditions(model, grid, torch.device("cpu"), speakers=speakers)
    return sample_chunk(model, noise, conditions, config, generator=generator)


def decoded(group: SequenceParallelGroup) -> torch.Tensor:
    """Frames of a latent, piece by piece."""
    vae = build_vae(TINY)
    vae.group = group
    with torch.inference_mode():
        return torch.cat(list(vae.decode_pieces(latent(6))), dim=2)


def one_of_two(rank: int, folder: str) -> None:
    """What a process does; it keeps all that comes out, which should be whole."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = build()
    model.group = SequenceParallelGroup.of_all_processes(torch.device("cpu"))
    torch.save(outcomes(model) | {"decoded": decoded(model.group)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def of_one() -> dict[str, torch.Tensor]:
    return outcomes(build())


@pytest.mark.parametrize(
    "name",
    [
        "1 speakers",
        "2 speakers",
        "2 speakers, cached steps",
        "guided steps, cached",
        "zero star",
        "fp8",
        "lora",
        "fp8, lora",
        *("unipc", "lcm", *GUIDANCE_SCALES),
        *(f"first block, {name}" for name in (*GUIDANCE_SCALES, "guided steps")),
    ],
)
def test_two_processes_make_what_one_makes(of_one, of_two, name):
    first, second = (made[name] for made in of_two)
    assert torch.equal(first, second)
    assert relative_error(first, of_one[name]) < 1e-5


def test_two_processes_decode_what_one_decodes_in_every_bit(of_two):
    expected = decoded(SequenceParallelGroup())
    assert expected.shape[2] == 21
    assert all(torch.equal(made["decoded"], expected) for made in of_two)


def test_two_processes_compute_a_forward_each_where_a_step_has_two(monkeypatch):
    """The first computes all of its tokens alone, and takes what the second has."""
    model, calls = build(), []
    monkeypatch.setattr(SequenceParallelGroup, "all_gather", lambda share, x: [x, x])
    run_blocks = model.run_blocks
    monkeypatch.setattr(model, "run_blocks", lambda *given: calls.append(given[-2]) or run_blocks(*given))
    model.group = SequenceParallelGroup(0, 2)
    chunk(model, *GUIDANCE_SCALES["two forwards"])
    assert calls == [True] * 2


def test_splitting_keeps_every_frames_order():
    tokens = torch.arange(2 * 3 * 8).view(2, 24, 1)  # B = 2, T = 3, S = 8
    shares = [SequenceParallelGroup(rank, 4).split(tokens, 3) for rank in range(4)]
    assert shares[1][0, :, 0].tolist() == [2, 3, 10, 11, 18, 19]


@pytest.mark.parametrize(("heads", "tokens"), [(3, 8), (4, 9)])
def test_what_cannot_be_shared_evenly_is_computed_by_each(heads, tokens):
    with pytest.warns(UserWarning, match=f"{heads} heads and {tokens} tokens .* by 2 processes"):
        assert SequenceParallelGroup(0, 2).if_divides(heads, tokens) == SequenceParallelGroup()
    assert SequenceParallelGroup(1, 2).if_divides(4, 8) == SequenceParallelGroup(1, 2)


def wait_in_c(started: Connection) -> None:
    """Wait for ever, holding the interpreter: Python runs no handlers of signals and no other thread."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with parallel._ended_by_signals():
        mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
        started.send(True)
        lock(mutex)
        lock(mutex)


def test_a_signal_ends_a_process_that_waits_for_another():
    started, theirs = forking().Pipe()
    process = forking().Process(target=wait_in_c, args=(theirs,))
    process.start()
    assert started.recv()
    process.terminate()
    process.join(10)
    status = process.exitcode
    process.kill()
    assert status == -signal.SIGTERM


def fail_and_wait_in_c(started: Connection) -> None:
    """Fail, then wait for ever as a library that waits for the GPU."""
    parallel.LAST_SECONDS = 1
    mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
    try:
        with parallel._ended_after_errors():
            raise ValueError
    except ValueError:
        started.send(True)
    lock(mutex)
    lock(mutex)


def test_a_process_with_an_error_ends_whatever_it_waits_for():
    started, theirs = forking().Pipe()
    process = forking().Process(target=fail_and_wait_in_c, args=(theirs,))
    process.start()
    assert started.recv()
    process.join(10)
    status = process.exitcode
    process.kill()
    assert status == -signal.SIGALRM


@pytest.mark.parametrize(
    ("own", "first", "fits"),
    [
        (("flash3", True), ("sdpa", False), True),
        (("flash3_fp8", True), ("flash3_fp8", True), True),
        (("flash3_fp8", False), ("flash3_fp8", True), False),
        (("sage", True), ("flash3_fp8", True), False),
    ],
)
def test_gpus_that_exchange_different_queries_are_refused(monkeypatch, own, first, fits):
    own, first = ({"self_attention": name, "fused_fp8_layers": fused} for name, fused in (own, first))
    monkeypatch.setattr(SequenceParallelGroup, "broadcast", lambda share, value: first)
    refused = nullcontext() if fits else pytest.raises(InvalidRequest, match="only some quantise them")
    with refused:
        parallel._check_queries(own, SequenceParallelGroup(1, 2))


def test_signals_after_the_shared_work_are_handled_as_before():
    before = [signal.getsignal(number) for number in parallel.ENDINGS]
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with parallel._ended_by_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "under nohup"
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert [signal.getsignal(number) for number in parallel.ENDINGS] == before


def started(request: GenerationParams, folder: Path, processes: int = 2) -> subprocess.Popen:
    """Start a request on one process, or on several with torchrun, in a process group of its own."""
    path = folder.with_suffix(".yaml")
    path.write_text(request.to_yaml())
    command = []
    if processes > 1:
        # `--` because torchrun has options of its own that begin with `--run`.
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
    command = [sys.executable, *(command or ["-m"]), "talkinghead_lab"]
    return subprocess.Popen(
        [*command, "generate", str(path), "--json", "--run", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def torchrun(request: GenerationParams, folder: Path, processes: int = 2) -> dict:
    """Run a request: its result."""
    process = started(request, folder, processes)
    output, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-2000:]
    return json.loads(output)


def interrupt(parent: psutil.Process, ranks: list[psutil.Process]) -> None:
    parent.send_signal(signal.SIGINT)


def kill(parent: psutil.Process, ranks: list[psutil.Process]) -> None:
    parent.kill()


def kill_the_first(parent: psutil.Process, ranks: list[psutil.Process]) -> None:
    ranks[0].kill()


# How many processes, what befalls them, and with which status the command ends.
INTERRUPTIONS = [(2, interrupt, 1), (1, kill, -9), (2, kill_the_first, 1), (2, kill, -9)]


@pytest.mark.slow
def test_all_processes_end_with_one_and_the_run_resumes_to_the_same_bytes(tmp_path, request_for, recording):
    """A step has two forward passes, of which each process computes one."""
    request = request_for(audio_path=recording(4.0), text_guide_scale=1.0, audio_guide_scale=2.0)
    folder = tmp_path / "run"
    for number, (processes, disturb, status) in enumerate(INTERRUPTIONS):
        process = started(request, folder, processes)
        while not (folder / "chunks" / f"0000{number}.safetensors").exists():
            assert process.poll() is None, process.communicate()[1][-2000:]
            time.sleep(0.005)
        parent = psutil.Process(process.pid)
        ranks = sorted(parent.children(), key=lambda child: child.environ().get("RANK", ""))
        disturb(parent, ranks)
        assert process.wait(timeout=20) == status
        left = psutil.wait_procs(ranks, timeout=1)[1]
        assert all(each.status() == psutil.STATUS_ZOMBIE for each in left), "each ended"
        assert not (folder / "run.json").exists()
    result = torchrun(request, folder)
    record = json.loads((folder / "run.json").read_text())
    assert record["chunks_of_earlier_calls"] >= len(INTERRUPTIONS)
    undisturbed = torchrun(request, tmp_path / "undisturbed", processes=1)
    assert Path(result["video_path"]).read_bytes() == Path(undisturbed["video_path"]).read_bytes()


@pytest.mark.slow
def test_two_processes_agree_where_a_run_of_one_goes_on(tmp_path, request_for):
    """The second of three chunks is damaged; later, nothing is left to do."""
    request, folder = request_for(max_frames=17, precision="fp32"), tmp_path / "run"
    with pytest.raises(Stopped):
        generate(request, folder, on_progress=lambda progress: progress.chunk < 3, show_progress=False)
    (folder / "chunks" / "00001.mp4").write_bytes(b"")
    result = torchrun(request, folder)
    assert result["frame_count"] == 17
    record = json.loads((folder / "run.json").read_text())
    assert (record["chunks_of_earlier_calls"], record["kernels"]["processes"]) == (1, 2)
    assert torchrun(request, folder) == result


@pytest.mark.slow
def test_torchrun_makes_the_run_of_one_process(tmp_path, request_for):
    request = request_for(max_frames=13, precision="fp32")
    result = torchrun(request, tmp_path / "shared")
    alone = generate(request, tmp_path / "alone", show_progress=False)
    shared, expected = (
        np.stack(list(read_frames(path))).astype(int) for path in (result["video_path"], alone.video_path)
    )
    # Float rounding flips single levels before the lossy coding, which spreads them a little.
    assert shared.shape == expected.shape
    assert ((shared - expected) ** 2).mean() < 255**2 / 10**5, "50 dB"
