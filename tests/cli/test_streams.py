"""Nobody need read what a command prints: results, report and exit code are the same."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_commands import CF, PHOTO, QUICK, TARGET, records, run, save_copy


def closed_pipe(encoding="utf-8"):
    """Of which nobody reads, as after `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    return io.TextIOWrapper(os.fdopen(writing, "wb"), encoding=encoding)


def full_disk():
    return open("/dev/full", "w", encoding="utf-8")


STREAMS = {
    "closed pipe": closed_pipe,
    "ASCII": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "full disk": full_disk,
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_results_are_complete_all_the_same(stream, as_json, tmp_path, monkeypatch):
    if stream == "full disk" and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    photos = [save_copy(tmp_path / name) for name in ("ü.png", "b.png")]
    (tmp_path / "c.png").write_text("broken")
    out = tmp_path / "out"
    options = ["--target", TARGET, "--source", PHOTO.garment, *QUICK, "--out", out, *as_json]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", STREAMS[stream]())
        assert run(*CF, *photos, *options) == 0
        patched.setattr(sys, "stdout", STREAMS[stream]())
        patched.setattr(sys, "stderr", STREAMS[stream]())
        assert run(*CF, *photos, tmp_path / "c.png", *options) == 1
    assert [r["status"] for r in records(out)] == ["done", "done", "failed"]
    assert "b-to-" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_descriptors(closed, tmp_path):
    """`>&-`: no file of the run may be taken for the stream."""

    def close():
        for descriptor in closed:
            os.close(descriptor)

    # On the way to a usage error: that is quick, and says enough about the streams.
    code = f"from fastdigin.cli import main; raise SystemExit(main(['status', {str(tmp_path)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=close, timeout=200)
    assert done.returncode == 2


def test_head_1(tmp_path):
    shown = subprocess.run(
        f"{sys.executable} -m fastdigin.cli presets | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert shown.stdout.splitlines()[-1] == "0" and shown.stderr == ""
