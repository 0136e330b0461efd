"""The outbox mark: kept over restarts, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigma9_integrations.mqtt.outbox import FILE, Mark, Outbox


def test_a_mark_survives(tmp_path: Path) -> None:
    """What was saved is loaded, from a file that only its owner reads."""
    assert Outbox(tmp_path).load() is None
    Outbox(tmp_path).save(Mark("j", 7))
    assert Outbox(tmp_path).load() == Mark("j", 7)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_a_folder_nothing_is_kept() -> None:
    """Without a data folder the outbox forgets."""
    outbox = Outbox(None)
    outbox.save(Mark("j", 7))
    assert outbox.load() is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"journal_id": "x"}', '{"journal_id": "x", "seq": "y"}', "\xff"]
)
def test_a_broken_file_is_reported(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that can't be read counts as none, and the log names it."""
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    assert Outbox(tmp_path).load() is None
    assert FILE in caplog.text


def test_a_failing_disk_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that takes nothing costs a warning, not the publisher."""
    Outbox(tmp_path / "missing").save(Mark("j", 7))
    assert "can't be written" in caplog.text
