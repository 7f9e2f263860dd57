"""Whole files only, hashes that tell inputs apart, and a cache that finds damage."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdigin.errors import UserError
from fastdigin.storage import (
    TensorCache,
    cache_key,
    cached,
    cached_batch,
    fingerprint,
    text_hash,
    weights_fingerprint,
)
from fastdigin_kernels.common.choices import cache_folder

TENSORS = {"a": torch.arange(6.0).view(2, 3), "empty": torch.zeros(0), "one": torch.tensor(3)}


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "kept")


def test_what_was_put_is_got(cache):
    assert cache.get("key") is None
    cache.put("key", TENSORS | {"turned": TENSORS["a"].T, "half": torch.ones(3).bfloat16()})
    got = cache.get("key")
    assert got.keys() == {*TENSORS, "turned", "half"}
    assert torch.equal(got["a"], TENSORS["a"]) and torch.equal(got["turned"], TENSORS["a"].T)
    assert got["half"].dtype == torch.bfloat16 and got["one"].shape == ()
    assert [path.suffix for path in cache.folder.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_a_damaged_file_is_not_there(cache, damage):
    cache.put("key", TENSORS)
    (path,) = cache.folder.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    damaged = {"cut": content[:-8], "bit": content, "empty": b"", "text": b"x" * 99}[damage]
    path.write_bytes(bytes(damaged))
    assert cache.get("key") is None
    cache.put("key", TENSORS)
    assert cache.get("key") is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_write_that_is_cut_short_leaves_what_was_there(cache, monkeypatch, error):
    """An interrupt ends the run; a full disk costs the entry only."""
    cache.put("key", TENSORS)

    def interrupted(*_):
        raise error

    monkeypatch.setattr(os, "replace", interrupted)
    if isinstance(error, OSError):
        cache.put("key", {"a": torch.zeros(1)})
    else:
        with pytest.raises(KeyboardInterrupt):
            cache.put("key", {"a": torch.zeros(1)})
    assert torch.equal(cache.get("key")["a"], TENSORS["a"])
    assert len(list(cache.folder.iterdir())) == 1


@pytest.mark.parametrize("broken", ["mkdir", "replace", "unlink", "mkstemp"])
def test_a_disk_that_is_full_or_read_only_costs_one_warning(tmp_path, monkeypatch, caplog, broken):
    def refused(*_, **__):
        raise OSError(30, "Read-only file system")

    cache = TensorCache(tmp_path / "there", limit=1)
    cache.put("kept", TENSORS)
    owner = {"mkdir": Path, "unlink": Path, "replace": os, "mkstemp": tempfile}[broken]
    monkeypatch.setattr(owner, broken, refused)
    if broken == "mkdir":
        cache = TensorCache(tmp_path / "new")
    for key in "ab":
        cache.put(key, TENSORS)
    assert len(caplog.messages) == 1 and "going on without it" in caplog.text
    assert broken in ("mkdir", "unlink") or cache.get("kept") is not None


def test_those_unused_for_longest_go_first(tmp_path):
    small = TensorCache(tmp_path, limit=1)
    small.put("x", {"a": torch.zeros(100)})  # larger than the limit, and kept all the same
    (file,) = small.folder.iterdir()
    cache = TensorCache(tmp_path / "three", limit=3 * file.stat().st_size)
    for age, key in enumerate(("old", "used", "new")):
        cache.put(key, {"a": torch.zeros(100)})
        os.utime(cache.folder / f"{key}.safetensors", (1000 + age, 1000 + age))
    assert cache.get("old") is not None  # now the most recently used
    cache.put("more", {"a": torch.zeros(100)})
    kept = {key for key in ("old", "used", "new", "more") if cache.get(key) is not None}
    assert kept == {"old", "new", "more"}
    for path in cache.folder.iterdir():  # as where the clock has gone back since
        os.utime(path, (2**33, 2**33))
    cache.put("now", {"a": torch.zeros(100)})
    assert cache.get("now") is not None and len(list(cache.folder.iterdir())) == 3


def test_keys_tell_everything_apart():
    a = torch.arange(4.0)
    parts = [
        (a,), (a.double(),), (a.view(2, 2),), (-a,), (a, a), ("a",), ("a", "b"), ("ab",), (1,),
        ("1",), (None,), (),
    ]  # fmt: skip
    assert len({cache_key(*p) for p in parts}) == len(parts)
    assert cache_key(a, "x") == cache_key(a.clone(), "x")
    assert cache_key(a.view(2, 2).T) == cache_key(a.view(2, 2).T.contiguous())


def test_every_weight_counts():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    found = [weights_fingerprint([network]), weights_fingerprint([network])]
    network[0].weight.data[1, 2] += 1e-6
    found.append(weights_fingerprint([network]))
    network[1].running_mean += 1
    found.append(weights_fingerprint([network]))
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize("home", ["known", "unknown", "relative"])
def test_a_user_without_a_home(tmp_path, monkeypatch, home):
    """As a container with a user that its system does not know: nothing is kept there."""
    for name in ("FASTDIGIN_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: {
        "known": f"{tmp_path}/me", "unknown": path, "relative": "me",
    }[home])  # fmt: skip
    folder = cache_folder()
    assert folder.is_absolute() and folder.name == "fastdigin"
    assert folder.is_relative_to(tmp_path) == (home == "known")


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        TensorCache(tmp_path / "file" / "folder")
    with pytest.raises(UserError, match="at least 1 byte, got 0"):
        TensorCache(tmp_path, limit=0)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "no cache"])
def test_only_what_is_missing_is_computed(tmp_path, kept):
    cache, computed = TensorCache(tmp_path) if kept else None, []

    def compute(missing):
        computed.append(missing)
        return [{"a": torch.tensor(n)} for n in missing]

    keys = ["x", None, "y"]
    assert [int(found["a"]) for found in cached_batch(cache, keys, compute)] == [0, 1, 2]
    again = cached_batch(cache, ["y", "z"], compute)
    assert [int(found["a"]) for found in again] == ([2, 1] if kept else [0, 1])
    assert computed == [[0, 1, 2], [1] if kept else [0, 1]]
    assert int(cached(cache, "x", lambda: {"a": torch.tensor(9)})["a"]) == (0 if kept else 9)


def test_hashes_in_records_stay_what_they_are():
    """Folders of results name inputs by them."""
    assert fingerprint(b"ab", None, "x") == hashlib.sha256(b"2:ab4:None3:'x'").hexdigest()[:12]
    tensor = torch.tensor([1.0])
    content = b"4:" + tensor.numpy().tobytes()
    assert fingerprint(tensor) == hashlib.sha256(content).hexdigest()[:12]
    assert text_hash("a/b", 12) == hashlib.sha256(b"a/b").hexdigest()[:12]
    assert text_hash("\udce9", 8) != text_hash("\udcea", 8)
