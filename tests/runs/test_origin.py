"""Digests of what a run was made from."""

from talkinghead_lab.runs import origin


def test_hashing_that_takes_long_shows_its_progress(request_for, monkeypatch, capsys, tmp_path):
    def shown(folder, *, show_progress=True):
        monkeypatch.setenv("TALKINGHEAD_CACHE", str(tmp_path / folder))
        digests = origin.InputDigests.of(request_for(), show_progress=show_progress)
        return digests, capsys.readouterr().err

    digests, text = shown("soon done")
    assert text == ""
    monkeypatch.setattr(origin, "SECONDS_WITHOUT_BAR", 0)
    again, text = shown("takes long")
    assert again == digests
    assert "hashing weights" in text
    assert shown("takes long") == (digests, ""), "nothing is left to hash"
    assert shown("not asked for", show_progress=False) == (digests, "")
