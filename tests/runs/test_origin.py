"""Digests of what a run was made from."""

from talkinghead_lab.runs import origin


def test_hashing_that_takes_long_shows_its_progress(request_for, monkeypatch, capsys):
    digests = origin.InputDigests.of(request_for(), show_progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(origin, "SECONDS_WITHOUT_BAR", 0)
    assert origin.InputDigests.of(request_for(), show_progress=True) == digests
    assert "hashing weights" in capsys.readouterr().err
    origin.InputDigests.of(request_for())
    assert capsys.readouterr().err == ""
