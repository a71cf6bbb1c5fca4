"""Time and memory of a run are those of its stages."""

from talkinghead_lab.measures.cost import cost


def test_what_a_run_took():
    stages = {
        "load": {"seconds": 1.0, "peak_host_gib": 0.5},
        "decode": {"seconds": 2.0, "peak_host_gib": 1.5},
    }
    found = {
        measure.name: measure for measure in cost(stages, 5.0, 25, {"seconds": 4.0, "after_loading": 3.0})
    }
    assert found["time_to_first_frame"].value == 3.0
    assert found["seconds_per_frame"].value == 0.2
    assert found["peak_host_gib"].value == 1.5
    assert found["peak_gpu_gib"].value is None
    assert "no GPU" in found["peak_gpu_gib"].why_not
    assert cost(stages, 5.0, 25, None)[0].why_not == "an earlier call made the first frames"
