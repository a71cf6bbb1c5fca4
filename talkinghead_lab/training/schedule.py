"""Training of one network: budget, learning rate, weight averaging, loss curve, and resumable state."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from talkinghead_lab.foundation.files import atomic_path
from talkinghead_lab.training.muon import LayerMuon, layer_weights


@dataclass(frozen=True)
class Budget:
    """Length of a training: `steps` or `seconds`, whichever ends first; the learning rate decays to fit."""

    steps: int
    seconds: float = math.inf

    def __str__(self) -> str:
        limit = "" if math.isinf(self.seconds) else f", at most {self.seconds:g} s"
        return f"{self.steps} steps{limit}"

    def progress(self, step: int, elapsed: float) -> float:
        """Share of the budget that is spent, 0 … 1."""
        return max(step / self.steps, elapsed / self.seconds)


@dataclass
class NetworkTraining:
    """Training of one network: optimisers, exponential moving average of the weights, and loss curve.

    Args:
        name: of the network, used in file names.
        modules: the modules to train.
        peak: peak learning rate of AdamW, reached after the share `warmup` of the budget, followed by cosine
            decay.
        matrix_peak: peak learning rate of Muon for layer weights; None trains them with AdamW too.
        decay: of the moving average.
        folder: stores the state, so that an interrupted training resumes; None stores nothing.
        seconds_between_saves: interval between saved states.
        curve: measures noted so far.
    """

    name: str
    modules: nn.ModuleList
    budget: Budget
    peak: float
    matrix_peak: float | None = None
    warmup: float = 0.03
    decay: float = 0.999
    weight_decay: float = 0.01
    folder: Path | None = None
    seconds_between_saves: float = 120.0
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        matrices = layer_weights(self.modules) if self.matrix_peak else []
        known = {id(weight) for weight in matrices}
        others = [p for p in self.parameters if id(p) not in known]
        on_gpu, device = self.parameters[0].is_cuda, self.parameters[0].device
        adamw = torch.optim.AdamW(
            others,
            torch.tensor(self.peak, device=device),
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
            fused=on_gpu,
            capturable=on_gpu,
        )
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, self.peak)]
        if self.matrix_peak:
            muon = LayerMuon(matrices, torch.tensor(self.matrix_peak, device=device), self.weight_decay)
            self.optimizers.append((muon, self.matrix_peak))
        self.average = AveragedModel(self.modules, multi_avg_fn=self._average)
        self.average.n_averaged.fill_(1)  # the initial weights
        self.first_step, self.elapsed_before, self.progress = 0, 0.0, 0.0
        if self.folder is not None and self._state_file.is_file():
            self._resume()

    def steps(self) -> Iterator[int]:
        """Yield step numbers until the budget is spent, setting the learning rate before each step."""
        started = saved = time.monotonic()
        step = self.first_step
        while True:
            now = time.monotonic()
            elapsed = self.elapsed_before + now - started
            progress = self.budget.progress(step, elapsed)
            if progress >= 1:
                break
            if self.folder is not None and now - saved > self.seconds_between_saves:
                self._save(step, elapsed)
                saved = now
            for optimizer, peak in self.optimizers:
                optimizer.param_groups[0]["lr"].fill_(peak * learning_rate(progress, self.warmup))
            self.progress = progress
            yield step
            step += 1
        self.use_average()

    def _backward_and_step(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()

    def _clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def after_step(self, step: int, **measures: Tensor) -> None:
        """Update the moving average; note the measures of every hundredth step."""
        self.average.update_parameters(self.modules)
        if step % 100 == 0:
            self.note(step, **{name: float(value.detach()) for name, value in measures.items()})

    def _average(self, averaged: Any, current: Any, _: object) -> None:
        # The decay starts low, so that the average soon forgets the initial random weights. The count is read
        # from the buffer on the host: the argument is a copy on the device.
        count = int(self.average.n_averaged)
        decay = min(self.decay, count / (count + 9))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    def captured(self, compute: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """A function that performs one optimiser step; on a GPU it replays a CUDA graph.

        Small convolutions take less time than their kernel launches, which a graph avoids.

        Args:
            compute: returns the `loss` and further measures, computed from buffers that are filled before
                every call.
        """

        def step() -> dict[str, Tensor]:
            self._clear_gradients()
            measures = compute()
            self._backward_and_step(measures["loss"])
            return measures

        if not self.parameters[0].is_cuda:
            return step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self._clear_gradients()
        try:
            with torch.cuda.graph(graph):
                measures = compute()
                self._backward_and_step(measures["loss"])
        except RuntimeError as error:
            print(self.name, "runs without a CUDA graph:", error, flush=True)
            return step

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return measures

        return replay

    def note(self, step: int, **measures: float) -> None:
        """Add a row to the curve and print it."""
        self.curve.append({"step": step, **measures})
        print(self.name, step, " ".join(f"{k} {v:.4g}" for k, v in measures.items()), flush=True)

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the weights by their moving average."""
        self.modules.load_state_dict(self.average.module.state_dict())

    def write_curve(self, folder: Path) -> None:
        """Write the curve as `curve-NAME.json`."""
        (folder / f"curve-{self.name}.json").write_text(json.dumps(self.curve) + "\n", encoding="utf-8")

    @property
    def _state_file(self) -> Path:
        assert self.folder is not None
        return self.folder / f"state-{self.name}.pt"

    def _save(self, step: int, elapsed: float) -> None:
        state: dict[str, Any] = {
            "step": step,
            "elapsed": elapsed,
            "modules": self.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "average": self.average.state_dict(),
            "curve": self.curve,
        }
        with atomic_path(self._state_file, overwrite=True) as path:
            torch.save(state, path)

    def _resume(self) -> None:
        state = torch.load(self._state_file, map_location=self.parameters[0].device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        for (optimizer, _), kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.average.load_state_dict(state["average"])
        self.curve = state["curve"]
        self.first_step, self.elapsed_before = state["step"], state["elapsed"]


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak rate: linear warm-up, then cosine decay to a hundredth."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random generator of one step, independent of earlier steps so that resumed trainings match."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)
