"""What users type by habit or by mistake is understood, or refused by name before any work."""

import os
from pathlib import Path

import pytest
from cli_commands import (
    CF,
    DISAGREE,
    NCF,
    NEURONS,
    PHOTO,
    QUICK,
    TARGET,
    run,
    save_copy,
    start_process,
    words_file,
)

TO_TARGET = ["--target", TARGET]
OF_PHOTO = [*CF, PHOTO.path, *TO_TARGET]
RAISED = [*NCF, PHOTO.path, "--direction", "max"]


@pytest.mark.parametrize("arguments", [[], ["explain"], ["counterfactual"], CF, ["disagree"]])
def test_usage_errors(arguments, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage:" in captured.err


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*OF_PHOTO, "--target", "snekaer"], ["'snekaer' is not a class", "did you mean 'snea"]),
        ([*OF_PHOTO, "--target", PHOTO.garment], ["source and target are both", "another target"]),
        ([*OF_PHOTO, "--source", "shoes"], ["'shoes' is not a class of embedded:clean"]),
        ([*OF_PHOTO, "--prompt", "a photo of grass"], ["'a photo of grass'", repr(PHOTO.garment)]),
        (
            [*OF_PHOTO, "--prompt", " ".join(["a"] * 40) + f" {PHOTO.garment}"],
            ["tokens", "shorten it"],
        ),
        ([*OF_PHOTO, "--classifier", "embedded:claen"], ["'claen'", "did you mean 'clean'"]),
        ([*OF_PHOTO, "--judge", "embedded:juge"], ["'juge'", "judge"]),
        ([*OF_PHOTO, "--model", "embeded"], ["'embeded'", "did you mean 'embedded'"]),
        ([*OF_PHOTO, "--regulariser", "pixels"], ["'pixels'", "KIND:REGION:WEIGHT"]),
        ([*OF_PHOTO, "--regulariser", "pixels-l3:all:1"], ["'pixels-l3'", "pixels-l2"]),
        ([*OF_PHOTO, "--regulariser", "pixels-l2:all:-1"], ["-1"]),
        (
            [*OF_PHOTO, "--regulariser", "lpips:all:1", "--regulariser", "lpips:all:2"],
            ["lpips_all is given 2 times"],
        ),
        ([*OF_PHOTO, "--memory", "1KiB"], ["memory"]),
        ([*OF_PHOTO, "--compile", "maybe"], ["compile"]),
        ([*CF, PHOTO.path], ["give --target"]),
        ([*CF, "embedded:pair", *TO_TARGET], ["embedded:pairs"]),
        ([*NCF, "nowhere.png", "--neuron", 3, "--direction", "max"], ["nowhere.png"]),
        ([*RAISED, "--neuron", 0, "--direction", "other"], ["'other'"]),
        ([*RAISED, "--neuron", 0, "--layer", "nolayer"], ["layer 'nolayer' is not a module"]),
        ([*NEURONS, "--neurons", 3, "--images", "nowhere.png"], ["none of the 1 photos"]),
        ([*NEURONS, "--neurons", 3, "--model", "owner/name"], ["--words is needed"]),
        ([*NEURONS, "--neurons", 3, "--words", "nowhere.txt"], ["nowhere.txt' cannot be read"]),
        ([*NEURONS, "--neurons", 3, "--words", PHOTO.path], ["cannot be read"]),
        ([*DISAGREE, "--classes", "bag,sneker"], ["did you mean 'sneaker'"]),
        (
            [*DISAGREE, "--g", "embedded:background", "--classes", "bag"],
            ["'bag' is not a class of embedded:background", "grass"],
        ),
    ],
)  # fmt: skip
def test_wrong_values(refused, arguments, words):
    error = refused(*arguments)
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    "option, value",
    [
        ("--limit", "0"), ("--limit", "-1"), ("--limit", "x"), ("--limit", "²"), ("--slots", "0"),
        ("--slots", "9" * 30), ("--seeds", "9" * 9), ("--limit", "9" * 20),
        ("--steps", "0"), ("--steps", "2000"), ("--steps", "x"), ("--steps", "1.5"),
        ("--iterations", "-1"), ("--iterations", "x"), ("--seeds", "x"), ("--seeds", "0"),
        ("--seed", "x"), ("--seed", "9" * 30), ("--objective", "loss"), ("--classes", ""),
        ("--classes", " , "),
    ],
)  # fmt: skip
def test_bad_counts(option, value, tmp_path, capsys):
    out = tmp_path / "out"
    quick = [] if option in QUICK else QUICK
    code = run(*DISAGREE, "--classes", "bag", "--out", out, *quick, f"{option}={value}")
    assert code == 2
    error = capsys.readouterr().err
    assert option.strip("-") in error and (value.strip() in error or "empty" in error)
    assert not (out / "results.jsonl").exists()


@pytest.mark.parametrize("neuron", ["128000", "-1", "x", "1.5", ""])
def test_wrong_neuron(refused, neuron):
    error = refused(*RAISED, f"--neuron={neuron}")
    assert f"neuron {neuron}" in error and "neurons 0 to" in error
    if neuron:
        assert f"neuron {neuron}" in refused(*NEURONS, f"--neurons=3,{neuron}")


def test_a_picture_that_is_none_is_one_line(refused, tmp_path):
    """Those of every kind: tests/tasks/test_inputs.py."""
    (tmp_path / "text.png").write_bytes(b"not an image")
    error = refused(*CF, tmp_path / "text.png", *TO_TARGET)
    assert "text.png' cannot be read as an image" in error and error.count("\n") == 1
    (tmp_path / "folder").mkdir()
    assert "folder' holds no images" in refused(*CF, tmp_path / "folder", *TO_TARGET)


def test_model_that_is_not_on_this_machine(refused, no_network):
    error = refused(*OF_PHOTO, "--model", "nobody/nothing-at-all")
    assert "'nobody/nothing-at-all' are not on this machine" in error and "hf download" in error


def test_wrong_words(refused, tmp_path):
    common = [*NEURONS, "--neurons", 3, "--words"]
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "empty.txt' is empty" in refused(*common, tmp_path / "empty.txt")
    long = words_file(tmp_path / "long.txt", "bag", " ".join(["bag"] * 30))
    assert "tokens" in refused(*common, long)
    os.mkfifo(tmp_path / "pipe")
    for endless in ("/dev/zero", tmp_path / "pipe", tmp_path):
        assert "it is no regular file" in refused(*common, endless)


def test_one_bad_image_in_the_data_set_of_neurons_is_left_out(tmp_path, words, capsys):
    bad, common = tmp_path / "nowhere.png", [*NEURONS, "--neurons", 3, "--images"]
    assert run(*common, bad, PHOTO.path, "--words", words, "--out", tmp_path / "out", *QUICK) == 0
    assert "left out: image" in capsys.readouterr().err


def test_an_error_in_a_table_names_its_line(refused, tmp_path):
    """Every kind of error: tests/tasks/test_tables.py."""
    table = tmp_path / "t.jsonl"
    table.write_text('{"image": "x.png"}\n\n{"image": "x.png", "goal": 3}\n')
    assert "line 3: " in refused(*CF, table, *TO_TARGET)
    table.write_text('{"image": "x.png", "target": "bagg"}\n')
    assert "'bagg'" in refused(*CF, table)


def test_out_that_cannot_be(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file; name a folder" in refused(*OF_PHOTO, out=file)
    assert "cannot be written" in refused(*OF_PHOTO, out=file / "below")
    assert file.read_text() == "mine"
    if Path("/proc/self").is_dir():  # as a file system that is read-only
        error = refused(*OF_PHOTO, out="/proc/fastdigin-out")
        assert "--out '/proc/fastdigin-out' cannot be written" in error
    if os.name == "posix" and os.getuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        error = refused(*OF_PHOTO, out=tmp_path / "locked" / "out")
        assert "name a folder that you may write to" in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*CF, PHOTO.path, *TO_TARGET, "--out", ""], "--out: must name something, got ''"),
        ([*CF, PHOTO.path, *TO_TARGET, "--out", "s3://b/run"], "--out 's3://b/run' must be a fold"),
        ([*CF, PHOTO.path, *TO_TARGET, "--cache", " "], "--cache: must name something"),
        ([*CF, "", *TO_TARGET], "IMAGES: must name something, got ''"),
        ([*CF, PHOTO.path, "", *TO_TARGET], "IMAGES: must name something"),
        (["status", ""], "DIR: must name something"),
        (["activating", "", "--classifier", "embedded:clean", "--neurons", 3], "PHOTOS: must name"),
        ([*CF, PHOTO.path, *TO_TARGET, "--seed", 2**32], "below 4294967296, got '4294967296'"),
        ([*CF, PHOTO.path, *TO_TARGET, "--stop-at", 1], "above 0 and below 1, got '1'"),
        ([*CF, PHOTO.path, *TO_TARGET, "--blending-fractions", "0.5,2"], "from 0 to 1, got 2.0"),
        ([*DISAGREE, "--classes", "bag", "--g", "embedded:clean"], "f and g are both embedded:cle"),
    ],
)
def test_texts_that_name_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_more_photos_than_there_are(tmp_path, capsys):
    for name in "abc":
        save_copy(tmp_path / f"{name}.png")
    out = ["--out", tmp_path / "out", "--no-cache", "--json"]
    common = [tmp_path, "--classifier", "embedded:clean", "--neurons", "3"]
    assert run("activating", *common, "--top", 10**9, *out) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    search = ["search", PHOTO.path, tmp_path, "--embedding", "embedded:judge"]
    assert run(*search, "--top", 10**12, *out) == 0


@pytest.mark.parametrize("name", ["a" * 300, "loop"])
@pytest.mark.parametrize(
    "arguments",
    [
        [*CF, "{}", *TO_TARGET], [*CF, "{}.csv", *TO_TARGET], [*CF, "imagenet:{}", *TO_TARGET],
        [*OF_PHOTO, "--out", "{}"], [*OF_PHOTO, "--model", "{}"], [*OF_PHOTO, "--model", "./{}"],
        [*OF_PHOTO, "--classifier", "embedded:{}"],
        ["activating", "{}", "--classifier", "embedded:clean", "--neurons", 3],
        ["status", "{}"], ["retry", "{}"], ["merge", "{}", "other"], ["score", "{}"],
        ["doctor", "--model", "{}"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)  # fmt: skip
def test_paths_that_no_system_has(name, arguments, tmp_path, monkeypatch, capsys):
    """Too long, or a link to itself: what asks a system about them gets an error of its own."""
    monkeypatch.chdir(tmp_path)
    for suffix in ("", ".csv"):
        Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
    given = [x.format(name) if isinstance(x, str) else x for x in arguments]
    assert run(*given) == (1 if "doctor" in given else 2)
    captured = capsys.readouterr()
    assert name in captured.out + captured.err
    assert sorted(os.listdir()) == ["loop", "loop.csv"]


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, capsys):
    save_copy(tmp_path / "x.png")

    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    for place in (tmp_path, f"imagefolder:{tmp_path}"):
        assert run(*CF, place, *TO_TARGET, "--out", tmp_path / "out") == 2
        assert f"{tmp_path}' cannot be read (Permission denied)" in capsys.readouterr().err


@pytest.mark.slow
def test_an_environment_of_nonsense(tmp_path, monkeypatch):
    """Threads that are no number and no home: the packaged model works all the same."""
    environment = {
        "PATH": "/usr/bin", "OMP_NUM_THREADS": "garbage", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "FASTDIGIN_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    process = start_process(
        *CF, PHOTO.path, *TO_TARGET, *QUICK, "--out", tmp_path / "out", "--attention", "sdpa",
        "--compile", "off", env=environment,
    )  # fmt: skip
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said


@pytest.mark.parametrize(
    "error",
    [ImportError("libtorch_cpu.so: failed to map segment from shared object"), MemoryError(),
     OSError(12, "Cannot allocate memory")],
)  # fmt: skip
@pytest.mark.parametrize("command", [OF_PHOTO, ["score", "out"]])
def test_libraries_for_which_the_address_space_is_too_small(capsys, monkeypatch, command, error):
    """What ``ulimit -v 2500000`` and ``3500000`` gave while torch and diffusers were loaded."""

    def full(name):
        raise error

    monkeypatch.setattr("importlib.import_module", full)
    assert run(*command, "--out", "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a library cannot be loaded" in line and (str(error) or "out of memory") in line
    assert "ulimit -v" in line
