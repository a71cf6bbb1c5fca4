"""Makes the embedded checkpoint.

python -m talkinghead_lab.training train FOLDER             from nothing; again: goes on
python -m talkinghead_lab.training train FOLDER --smoke     tiny: minutes on a CPU, to see that it runs
python -m talkinghead_lab.training evaluate --clips 64 --json   how good the shipped weights are
python -m talkinghead_lab.training untrained FOLDER         the checkpoint's layout with random weights
"""

import argparse
import json
from pathlib import Path

import torch

from talkinghead_lab.foundation.paths import SAMPLES_FOLDER
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.training.evaluate import as_text, evaluate_checkpoint
from talkinghead_lab.training.networks import build_untrained, vocabulary
from talkinghead_lab.training.train import LORA, SMOKE, STAGES, Settings, Training, within
from talkinghead_lab.weights import checkpoints
from talkinghead_lab.weights.writing import write_checkpoint


def main(arguments: list[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m talkinghead_lab.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train the networks")
    training.add_argument("folder", type=Path)
    training.add_argument("--smoke", action="store_true", help="tiny, for a CPU")
    training.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for stage in STAGES:
        training.add_argument(f"--{stage}-seconds", type=float, help=f"end the {stage} stage by then")
    evaluation = commands.add_parser("evaluate", help="measure the networks on unseen speech and presenters")
    evaluation.add_argument("--weights", type=Path, default=checkpoints.EMBEDDED_WEIGHTS)
    evaluation.add_argument("--lora", type=Path, default=SAMPLES_FOLDER / LORA)
    evaluation.add_argument(
        "--corpus", type=Path, help="speech of the test split; left out: made with espeak-ng"
    )
    evaluation.add_argument("--params", type=Path, default=Path("params/embedded.yaml"))
    evaluation.add_argument("--fast-params", type=Path, default=Path("params/embedded-fast.yaml"))
    evaluation.add_argument("--clips", type=int, default=64, help="videos of six seconds")
    evaluation.add_argument("--long-clips", type=int, default=4, help="videos of a minute")
    evaluation.add_argument("--seed", type=int, default=1)
    evaluation.add_argument("--json", action="store_true", help="print JSON, not a table")
    evaluation.add_argument("--keep", type=Path, help="folder for pictures of some of the videos")
    evaluation.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    untrained = commands.add_parser("untrained", help="write random weights")
    untrained.add_argument("folder", type=Path)
    untrained.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.command == "untrained":
        write_checkpoint(options.folder, build_untrained(options.seed), vocabulary())
        return
    if options.command == "evaluate":
        _evaluate(options)
        return
    limits = {stage: getattr(options, f"{stage}_seconds") for stage in STAGES}
    settings = within(SMOKE if options.smoke else Settings(), **{k: v for k, v in limits.items() if v})
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    Training(options.folder, settings, torch.device(options.device)).run(options.stages)


def _evaluate(options: argparse.Namespace) -> None:
    params, fast = (
        GenerationParams.from_yaml(path, image_path="unused", audio_path="unused", loras=())
        for path in (options.params, options.fast_params)
    )
    table = evaluate_checkpoint(
        options.weights,
        options.lora,
        params,
        fast,
        options.clips,
        options.long_clips,
        torch.device(options.device),
        options.seed,
        options.corpus,
        options.keep,
    )
    print(json.dumps(table, indent=1) if options.json else as_text(table))


if __name__ == "__main__":
    main()
