"""Fit the memory model to a profile, and print how well it predicts each run that it was not fitted to."""

import json
from collections.abc import Sequence
from pathlib import Path

from talkinghead_lab.foundation.command_line import CommandParser
from talkinghead_lab.profiling.profile import cross_validated_peaks, fit, read


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table of measured and predicted peaks, the largest error, and the coefficients."""
    parser = CommandParser(prog="python -m talkinghead_lab.profiling", description=__doc__)
    parser.add_argument("profile", type=Path, help="a profile.json of the benchmark, or a profile.csv")
    parser.add_argument("--coefficients", action="store_true", help="also print those fitted to all runs")
    options = parser.parse_args(arguments)
    table = read(options.profile)
    runs = cross_validated_peaks(table)
    print("| run | measured GiB | predicted by the others | error |\n| --- | --- | --- | --- |")
    for setting, measured, predicted, error in runs.iter_rows():
        print(f"| {setting} | {measured:.2f} | {predicted:.2f} | {error:+.1f}% |")
    print(f"\nlargest error of {len(runs)} runs: {max(runs['error_percent'].abs()):.1f}%")
    if options.coefficients:
        print(json.dumps(fit(table), indent=1))
    return 0
