"""The command line among hostile photos, and on disks that are full."""

import errno
import os

import pytest
from cli_commands import CF, PHOTO, QUICK, TARGET, records, run, save_copy

CHANGE = ["--target", TARGET, "--source", PHOTO.garment, *QUICK]


def test_hostile_photos_fail_alone(tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    save_copy(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "._good.png").write_text("what another system keeps")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    (folder / "\x1b[2Jclear.png").write_text("<script>alert(1)</script>")
    assert run(*CF, folder, "\0.png", "\ud800.png", *CHANGE, "--out", out) == 1
    shown = "".join(capsys.readouterr())
    assert "\x1b[2J" not in shown and "\\x1b[2Jclear" in shown and "Traceback" not in shown
    assert sorted(r["status"] for r in records(out)) == ["done"] + 5 * ["failed"]
    page = (out / "report.html").read_text()
    assert str(tmp_path) not in page and "clear.png" in page and "<script>alert" not in page


@pytest.mark.parametrize(
    "name", ["run.json", "command.json", "-image.png", "results.jsonl", "report.html"]
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch, name):
    """Whichever file is being written."""
    photo, out = save_copy(tmp_path / "a.png"), tmp_path / "out"
    arguments = [*CF, photo, *CHANGE, "--out", out, "--no-cache"]

    def full(path):
        if str(path).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: full(os.readlink(f"/proc/self/fd/{file}")))
        patch.setattr(os, "replace", lambda old, new: full(new) or os.rename(old, new))
        assert run(*arguments) == 1
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if "No space left" in line)
    assert line.startswith("fastdigin counterfactual: ") and "the same command continues" in line
    assert "Traceback" not in said
    assert run(*arguments) == 0
    assert [r["status"] for r in records(out)] == ["done"]


def test_a_job_whose_picture_is_lost_is_done_again(tmp_path, capsys):
    photo, out = save_copy(tmp_path / "a.png"), tmp_path / "out"
    assert run(*CF, photo, *CHANGE, "--out", out) == 0
    picture = out / records(out)[0]["image"]
    content = picture.read_bytes()
    picture.write_bytes(b"")
    assert run(*CF, photo, *CHANGE, "--out", out) == 0
    assert "1 finished images lack pictures and are done again" in capsys.readouterr().err
    assert picture.read_bytes() == content and len(records(out)) == 2
