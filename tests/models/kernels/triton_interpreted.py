"""Runs self-checks of Triton kernels in its interpreter, on a CPU, and prints their comparisons as JSON.

    TRITON_INTERPRET=1 python -m tests.models.kernels.triton_interpreted text_image fused_layers

The interpreter multiplies bf16 as if it were integers, so the tensors are fp16 here.
"""

import json
import sys

import torch

from talkinghead_lab.models.kernels import self_checks
from tests.models.kernels.triton_checks import CHECKS

TOKENS = 117  # fewer than on a GPU: each tile takes milliseconds


def main(names: list[str]) -> None:
    """Print {check: [[what, error, bound], …]}."""
    self_checks.DTYPE, self_checks.TOKENS = torch.float16, TOKENS
    print(json.dumps({name: list(CHECKS[name](torch.device("cpu"))) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
