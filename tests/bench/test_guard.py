"""The guard's comparison of two results folders."""

import json

import pytest

from fastdigin_bench.guard import compare

RECORD = {"task": "neurons", "id": "3-max-0", "status": "done", "seconds": 2.5, "activation": 1.25}


@pytest.fixture
def folders(tmp_path):
    """Writes OLD and NEW, each from records and pictures {path: bytes}."""

    def write(old, new):
        for name, (records, pictures) in {"old": old, "new": new}.items():
            (tmp_path / name / "images").mkdir(parents=True)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (tmp_path / name / "results.jsonl").write_text(lines)
            for path, content in pictures.items():
                (tmp_path / name / path).write_bytes(content)
        return tmp_path / "old", tmp_path / "new"

    return write


def test_other_times_and_new_keys_are_no_difference(folders):
    later = RECORD | {"seconds": 9.0, "schema": 2}
    found = compare(*folders(([RECORD], {"images/a.png": b"1"}), ([later], {"images/a.png": b"1"})))
    assert (found.records, found.pictures) == (1, 1)
    assert found.new_keys == ["schema"] and found.differences == []


def test_the_last_record_of_a_job_counts(folders):
    failed = RECORD | {"status": "failed", "error": "out of memory"}
    found = compare(*folders(([failed, RECORD], {}), ([RECORD], {})))
    assert found.differences == []


@pytest.mark.parametrize(
    ("records", "pictures", "expected"),
    [
        ([RECORD | {"activation": 1.2500001}], {"images/a.png": b"1"}, "'activation' was 1.25"),
        ([{k: v for k, v in RECORD.items() if k != "activation"}], {"images/a.png": b"1"},
         "'activation' is missing"),
        ([RECORD | {"status": "failed", "error": "NaN"}], {"images/a.png": b"1"}, "failed: NaN"),
        ([RECORD, RECORD | {"id": "4"}], {"images/a.png": b"1"}, "neurons/4: only in NEW"),
        ([], {"images/a.png": b"1"}, "neurons/3-max-0: only in OLD"),
        ([RECORD], {"images/a.png": b"2"}, "a.png: other bytes"),
        ([RECORD], {}, "a.png: only in OLD"),
        ([RECORD], {"images/a.png": b"1", "images/b.png": b"1"}, "b.png: only in NEW"),
    ],
)  # fmt: skip
def test_each_difference_is_named(folders, records, pictures, expected):
    found = compare(*folders(([RECORD], {"images/a.png": b"1"}), (records, pictures)))
    assert any(expected in difference for difference in found.differences)


def test_equal_failures_are_no_agreement(folders):
    failed = RECORD | {"status": "failed", "error": "out of memory"}
    assert compare(*folders(([failed], {}), ([failed], {}))).differences


def test_empty_folders_are_no_agreement(folders):
    assert compare(*folders(([], {}), ([], {}))).differences
