"""A measure has a value or a reason, never neither and never both."""

import pytest

from talkinghead_lab.measures.measure import Measure


def test_a_measure_knows_its_unit_and_direction():
    assert Measure.of("color_drift", 2.0) == Measure("color_drift", 2.0, "ΔE", "lower", None)


@pytest.mark.parametrize(("value", "why_not"), [(None, None), (1.0, "no reason")])
def test_without_a_value_there_is_a_reason(value, why_not):
    with pytest.raises(ValueError, match="flicker"):
        Measure.of("flicker", value, why_not)
