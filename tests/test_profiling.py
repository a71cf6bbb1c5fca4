"""A stage's seconds and peak memory are its own."""

import time

import numpy as np
import pytest

from talkinghead_lab.profiling import StageClock


def test_stages_add_up_and_each_has_its_own_peak():
    clock = StageClock()
    with clock("large"):
        held = np.ones(40_000_000)  # 0.298 GiB
    del held
    for _ in range(2):
        with clock("small"):
            time.sleep(0.05)
    assert clock.stages["small"]["seconds"] == pytest.approx(0.1, abs=0.05)
    difference = clock.stages["large"]["peak_host_gib"] - clock.stages["small"]["peak_host_gib"]
    assert difference == pytest.approx(0.298, abs=0.02)
