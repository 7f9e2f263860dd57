"""Tables, folders and data sets of photos: what they may hold, and what is refused."""

import json
import os
import sys

import pytest
from PIL import Image

from fastdigin import embedded
from fastdigin.datasets.layout import SUFFIXES
from fastdigin.errors import UserError
from fastdigin.photos import ImageInput, collect
from fastdigin.results.pictures import FORMATS


def test_folders_and_limits(tmp_path, caplog):
    """What is left out of a folder is said, but for hidden files."""
    for name in ("b.PNG", "a.jpeg", "c.webp", "._a.jpeg", ".hidden.png", ".png"):
        (tmp_path / name).touch()
    assert [i.id for i in collect([str(tmp_path)])] == ["a", "b", "c"]
    assert not caplog.text
    for name in ("notes.txt", "photo.HEIC", "README"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert len(collect([str(tmp_path)])) == 4  # the last one fails alone, by name
    assert "are left out (.heic, .txt, no suffix)" in caplog.text
    (tmp_path / "folder.png").rmdir()
    assert [i.id for i in collect([str(tmp_path)], 2)] == ["a", "b"]
    pairs = collect(["embedded:pairs"], 3)
    assert [i.target for i in pairs] == [p.target for p in embedded.pairs()[:3]]
    with pytest.raises(UserError, match="no images were given"):
        collect([])


def test_a_folder_gives_all_formats_that_are_read():
    Image.init()
    assert {s for s, kind in Image.registered_extensions().items() if kind in FORMATS} == SUFFIXES


def test_table_values(tmp_path):
    """Numbers are texts, also zero; line separators within a prompt do not end a row."""
    table = tmp_path / "table.jsonl"
    rows = [
        {"image": "a.png", "id": 0, "target": 0, "source": 5, "prompt": "one\u2028two"},
        {"image": "/abs/b.png", "prompt": None},
    ]
    table.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    first, second = collect([str(table)])
    assert first == ImageInput("0", tmp_path / "a.png", "one\u2028two", "5", "0")
    assert str(second.image) == "/abs/b.png" and second.prompt is None and second.id == "b"
    table = tmp_path / "table.csv"
    columns = "image,id,prompt,mask,target,source_word,target_word\n"
    rows = 'ü.png,first,"two\nlines, ""quoted""",mask.png,7,sneaker,boot\nü.png,,,,7,,\n'
    table.write_text(columns + rows, encoding="utf-8-sig")  # as spreadsheets write it
    image, mask = tmp_path / "ü.png", tmp_path / "mask.png"
    words = {"source_word": "sneaker", "target_word": "boot"}
    first = ImageInput("first", image, 'two\nlines, "quoted"', target="7", mask=mask, **words)
    assert collect([str(table)]) == [first, ImageInput("ü", image, target="7")]


DEEP = '{"image": ' + "[" * 100_000 + "]" * 100_000 + "}\n"


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("t.csv", "image,id,id\na.png,bag,boot\n", "row 1: two columns are called 'id'"),
        ("t.csv", 'image,prompt\na.png,"a photo\nb.png,c\n', "cannot be read: unexpected end"),
        ("t.csv", 'image,prompt\na.png,"a photo\nb.png,"c"\n', "cannot be read: ',' expected"),
        ("t.csv", "image,id\na.png," + "x" * 200_000, "cannot be read: field larger"),
        ("t.csv", b"image\n\xff.png\n", "cannot be read: 'utf-8'"),
        ("t.jsonl", '{"image": "a", "id": "1", "id": "2"}', "line 1: two columns are called 'id'"),
        ("t.jsonl", '\n{"image": "a"}\n{"image": "b"\n', "cannot be read: line 3"),
        ("t.jsonl", DEEP, "cannot be read: line 1"),
        ("t.jsonl", '{"image": NaN}', "line 1: no image"),
        ("t.jsonl", '{"image": "a", "prompt": {"a": 1}}', "line 1: prompt is not a text"),
        ("t.jsonl", '{"image": "a", "id": ' + "9" * 5000 + "}", "cannot be read: line 1"),
        ("t.csv", "", "has no rows"),
        ("t.csv", "image,target\n", "has no rows"),
        ("t.csv", "image,goal\nx.png,bag\n", "row 1: .*'goal'.*image, id, prompt"),
        ("t.csv", "target\nbag\n", "row 1: no image"),
        ("t.csv", "image,target\nx.png,bag,boot\n", "row 1: more cells"),
        ("t.csv", "image;target\nx.png;bag\n", "row 1: .*'image;target'"),
        ("t.jsonl", "", "has no rows"),
        ("t.jsonl", '\n\n{"image": "x.png", "goal": 3}\n', "line 3: .*'goal'"),
        ("t.jsonl", '\n["x.png"]\n', "line 2: .*object"),
    ],
)
def test_tables_that_could_be_read_wrongly_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"{name}',? {words}"):
        collect([str(tmp_path / name)])


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UserError, match="t.csv' is no regular file"):
        collect([str(tmp_path / "t.csv")])


def test_a_data_set(tmp_path):
    for name in ("red_boot", "bag"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    path = tmp_path / "red_boot" / "1.png"
    boot = ImageInput("red_boot-1", path, "a photograph of a {}", "red boot", crop=True)
    assert collect([f"imagefolder:{tmp_path}"])[1] == boot


def test_a_parquet_table_needs_pyarrow(tmp_path, monkeypatch):
    for module in ("pyarrow.parquet", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="needs the package pyarrow: pip install 'fastdigin.datas"):
        collect([str(tmp_path / "t.parquet")])


def test_a_parquet_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = tmp_path / "t.parquet"
    rows = {"image": ["a.png", "b.png"], "source": ["boot", None], "target": ["bag", "7"]}
    parquet.write_table(pyarrow.table(rows), table)
    assert collect([str(table)]) == [
        ImageInput("a", tmp_path / "a.png", source="boot", target="bag"),
        ImageInput("b", tmp_path / "b.png", target="7"),
    ]
    # Empty cells of pandas are NaN, its categories are dictionaries, and names of files are bytes.
    sources = pyarrow.array(["boot", None]).dictionary_encode()
    images = pyarrow.array([b"a\xff.png", b"b.png"]).view(pyarrow.string())
    rows = {"image": images, "source": sources, "target": [float("nan"), 7.0]}
    parquet.write_table(pyarrow.table(rows), table)
    assert collect([str(table)]) == [
        ImageInput("a\udcff", tmp_path / "a\udcff.png", source="boot"),
        ImageInput("b", tmp_path / "b.png", target="7.0"),
    ]
    for names, values, words in (
        (["image"], [[{"bytes": b"1"}]], "row 1: image is not a text"),
        (["image", "image"], [["a"], ["b"]], "row 1: two columns are called 'image'"),
    ):
        columns = [pyarrow.array(value) for value in values]
        parquet.write_table(pyarrow.table(columns, names=names), table)
        with pytest.raises(UserError, match=words):
            collect([str(table)])
    table.write_text("image\na.png\n")
    for path in (table, tmp_path / "none.parquet"):
        with pytest.raises(UserError, match="cannot be read"):
            collect([str(path)])
