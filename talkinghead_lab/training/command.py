"""Train and evaluate the bundled model.

python -m talkinghead_lab.training train FOLDER                 train from scratch, or resume
python -m talkinghead_lab.training train FOLDER --smoke         a reduced version: minutes on a CPU
python -m talkinghead_lab.training evaluate --clips 64 --json   measure the shipped weights
python -m talkinghead_lab.training evaluate --pairs 32          measure them with two speakers
python -m talkinghead_lab.training untrained FOLDER             write random weights in the same layout
"""

import argparse
import json
from pathlib import Path

import torch

from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.training.evaluate import as_text, evaluate_checkpoint
from talkinghead_lab.training.evaluate_pairs import evaluate_pairs
from talkinghead_lab.training.networks import build_untrained, vocabulary
from talkinghead_lab.training.train import LORA, PAIRS_LORA, SMOKE, STAGES, Training, TrainingSettings, within
from talkinghead_lab.weights import locating
from talkinghead_lab.weights.writing import write_checkpoint


def main(arguments: list[str] | None = None) -> None:
    """Run one command."""
    parser = CommandParser(
        prog="python -m talkinghead_lab.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train the networks, or resume training")
    training.add_argument("folder", type=Path, help="corpus, weights, LoRA and curves are written here")
    training.add_argument("--smoke", action="store_true", help="reduced version for a CPU")
    training.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="stages to run")
    training.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu"
    )
    for stage in STAGES:
        training.add_argument(f"--{stage}-seconds", type=float, help=f"time limit of the {stage} stage")
    evaluation = commands.add_parser("evaluate", help="measure a checkpoint on unseen speech and presenters")
    _add_evaluation_arguments(evaluation)
    untrained = commands.add_parser("untrained", help="write random weights in the released layout")
    untrained.add_argument("folder", type=Path)
    untrained.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    options = parser.parse_args(arguments)
    if options.command == "untrained":
        write_checkpoint(options.folder, build_untrained(options.seed), vocabulary())
        return
    if options.command == "evaluate":
        _evaluate(options)
        return
    limits = {stage: getattr(options, f"{stage}_seconds") for stage in STAGES}
    settings = within(
        SMOKE if options.smoke else TrainingSettings(), **{k: v for k, v in limits.items() if v}
    )
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    Training(options.folder, settings, torch.device(options.device)).run(options.stages)


def _add_evaluation_arguments(evaluation: argparse.ArgumentParser) -> None:
    add = evaluation.add_argument
    add("--weights", type=Path, default=locating.EMBEDDED_WEIGHTS, help="folder in the released layout")
    add("--lora", type=Path, default=SAMPLES_FOLDER / LORA, help="LoRA of the fast preset")
    add("--corpus", type=Path, help="speech of the test split; default: synthesised with espeak-ng and flite")
    add("--params", default="embedded", help="preset to measure")
    add("--fast-params", default="embedded-fast", help="preset that uses the LoRA")
    add("--clips", type=int, default=64, help="number of six-second videos")
    add("--pairs", type=int, default=0, help="number of pairs of speakers to measure instead of single ones")
    add("--pairs-lora", type=Path, default=SAMPLES_FOLDER / PAIRS_LORA, help="LoRA for two people")
    add("--pairs-params", default="two-speakers-embedded", help="preset for two people")
    add("--long-clips", type=int, default=4, help="number of one-minute videos")
    add("--seed", type=int, default=1, help="seed of presenters, speech and motion")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--keep", type=Path, help="folder for contact sheets of some videos")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")


def _evaluate(options: argparse.Namespace) -> None:
    device, weights = torch.device(options.device), options.weights
    shared = {"seed": options.seed, "corpus": options.corpus, "pictures": options.keep}
    if options.pairs:
        params = _preset(options.pairs_params)
        table = evaluate_pairs(weights, options.pairs_lora, params, options.pairs, device, **shared)
    else:
        presets = _preset(options.params), _preset(options.fast_params)
        counts = options.clips, options.long_clips
        table = evaluate_checkpoint(weights, options.lora, *presets, *counts, device, **shared)
    print(json.dumps(table, indent=1) if options.json else as_text(table))


def _preset(name: str) -> GenerationParams:
    """The sampling settings of a preset; the evaluation makes its own inputs."""
    changes = {"audio_mix": "para", "segments": None, "speaker_boxes": None, "loras": ()}
    return GenerationParams.from_yaml(name, image_path="unused", audio_path="unused", **changes)
