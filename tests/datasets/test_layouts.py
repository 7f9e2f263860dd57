"""Each data set's layout, in miniature. The pictures are empty files: none may be opened."""

import sys

import numpy as np
import pytest

from fastdigin.datasets import class_names, photos
from fastdigin.errors import UserError

TENCH, ROBIN, CRANE = "n01440764", "n01558993", "n02012849"
NAMES = {TENCH: "tench, Tinca tinca", ROBIN: "robin, American robin, Turdus migratorius"}


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def facts(argument):
    return [(p.id, p.name, p.source, p.target) for p in photos(argument)]


@pytest.mark.parametrize(
    ("kind", "below"), [("imagefolder", ""), ("cars", "test"), ("cars", "car_data/car_data/test")]
)
def test_a_folder_for_each_class(tmp_path, kind, below):
    root = tmp_path / below
    touch(root / "red_fox" / "1.JPG", root / "arctic fox" / "1.png", root / "notes.txt")
    touch(root / "red_fox" / "readme.md", root / "red_fox" / "._1.JPG", root / ".trash" / "2.png")
    assert facts(f"{kind}:{tmp_path}") == [
        ("arctic fox-1", "arctic fox", "arctic fox", None),
        ("red_fox-1", "red fox", "red fox", None),
    ]
    assert class_names(f"{kind}:{tmp_path}") == ["arctic fox", "red fox"]


@pytest.mark.parametrize("root", ["", "val"])
def test_imagenet_in_folders(tmp_path, root):
    val = tmp_path / root
    touch(val / ROBIN / "ILSVRC2012_val_00000002.JPEG", val / CRANE / "c.JPEG")
    touch(val / TENCH / "ILSVRC2012_val_00000001.JPEG")
    assert facts(f"imagenet:{tmp_path}") == [
        ("ILSVRC2012_val_00000001", "tench", NAMES[TENCH], None),
        ("ILSVRC2012_val_00000002", "robin", NAMES[ROBIN], None),
        ("c", "crane", "134", None),  # two classes are called crane and nothing else
    ]


def flat(folder):
    touch(*(folder / f"ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2, 3)))


def write_meta(path):
    """As the devkit: a struct array whose numbers are not those of the sorted synsets."""
    scipy_io = pytest.importorskip("scipy.io")
    rows = np.zeros((2, 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    rows["ILSVRC2012_ID"][:, 0], rows["WNID"][:, 0] = [1, 2], [ROBIN, TENCH]
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, {"synsets": rows})


@pytest.mark.parametrize("truth", ["csv", "synsets", "caffe", "devkit", "devkit beside"])
def test_imagenet_in_one_folder(tmp_path, truth):
    """The order is that of the photos' numbers: robin, tench, tench."""
    flat(tmp_path / "val")
    if truth == "csv":
        text = "ImageId,PredictionString\n" + "".join(
            f"ILSVRC2012_val_0000000{n},{w} 1 2 3 4 {w} 5 6 7 8\n"
            for n, w in ((3, TENCH), (1, ROBIN), (2, TENCH))
        )
        (tmp_path / "LOC_val_solution.csv").write_text(text)
    elif truth == "synsets":
        path = tmp_path / "imagenet_2012_validation_synset_labels.txt"
        path.write_text(f"{ROBIN}\n{TENCH}\n{TENCH}\n")
    elif truth == "caffe":
        lines = [f"ILSVRC2012_val_0000000{n}.JPEG {k}" for n, k in ((1, 15), (2, 0), (3, 0))]
        (tmp_path / "val" / "val.txt").write_text("\n".join(lines))
    else:
        place = tmp_path / "ILSVRC2012_devkit_t12" / "data" if truth == "devkit" else tmp_path
        write_meta(place / "meta.mat")
        (place / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n2\n")
    assert [(id[-1], name) for id, name, _, _ in facts(f"imagenet:{tmp_path}")] == [
        ("1", "robin"), ("2", "tench"), ("3", "tench"),
    ]  # fmt: skip


def test_imagenet_pairs(tmp_path):
    """Photos of one class take the classes of its cluster in turn."""
    golden = "n02099601"
    touch(*(tmp_path / golden / f"{n}.JPEG" for n in range(6)), tmp_path / TENCH / "0.JPEG")
    targets = [p.target for p in photos(f"imagenet-pairs:{tmp_path}") if p.name != "tench"]
    assert [t.split(",")[0] for t in targets] == [
        "flat-coated retriever", "curly-coated retriever", "Labrador retriever",
        "Chesapeake Bay retriever", "flat-coated retriever", "curly-coated retriever",
    ]  # fmt: skip


def test_classifiers_understand_every_class_of_imagenet():
    """Synonyms, or the index where two classes share even those."""
    import torch

    from fastdigin.datasets.hierarchy import classes
    from fastdigin.datasets.imagenet import ambiguous_names, classifier_name
    from fastdigin.models.classifier import Classifier

    names = [c.names for c in classes()]
    half = (0.5, 0.5, 0.5)
    classifier = Classifier(torch.nn.Linear(1, 1), size=8, mean=half, std=half, classes=names)
    found = [classifier.class_index(classifier_name(c)) for c in classes()]
    assert found == list(range(1000))
    assert len(ambiguous_names()) < 10


@pytest.mark.parametrize("inside", ["", "CUB_200_2011"])
def test_cub(tmp_path, inside):
    root = tmp_path / inside
    kinds = ["001.Black_footed_Albatross/B_1", "001.Black_footed_Albatross/B_2", "002.Wren/W_3"]
    touch(*(root / "images" / f"{k}.jpg" for k in kinds))
    lines = [f"{n} {kind}.jpg" for n, kind in enumerate(kinds, start=1)]
    (root / "images.txt").write_text("\n".join(lines))
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    found = photos(f"cub:{tmp_path}")
    assert [(p.id, p.name) for p in found] == [("B_2", "Black footed Albatross"), ("W_3", "Wren")]
    assert all(p.path.is_file() and p.source == p.name for p in found)


def test_cars_as_published(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    (tmp_path / "devkit").mkdir()
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], dtype=object)
    scipy_io.savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": names})
    rows = np.zeros((1, 2), dtype=[("bbox_x1", "O"), ("class", "O"), ("fname", "O")])
    rows["class"][0], rows["fname"][0] = [2, 1], ["00001.jpg", "00002.jpg"]
    rows["bbox_x1"][0] = [5, 6]
    scipy_io.savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": rows})
    touch(tmp_path / "cars_test" / "00001.jpg", tmp_path / "cars_test" / "00002.jpg")
    found = photos(f"cars:{tmp_path}")
    assert [(p.id, p.name) for p in found] == [
        ("00001", "Acura RL Sedan 2012"), ("00002", "AM General Hummer SUV 2000"),
    ]  # fmt: skip
    assert all(p.path.is_file() for p in found)


@pytest.mark.parametrize("labels", [True, False])
def test_food101(tmp_path, labels):
    root = tmp_path / "food-101"
    touch(root / "images" / "apple_pie" / "1.jpg", root / "images" / "steak" / "1.jpg")
    touch(root / "images" / "steak" / "2.jpg", root / "meta" / "test.txt")
    (root / "meta" / "test.txt").write_text("apple_pie/1\nsteak/1\n")
    if labels:
        (root / "meta" / "classes.txt").write_text("apple_pie\nsteak\n")
        (root / "meta" / "labels.txt").write_text("Apple pie\nSteak\n")
    found = photos(f"food101:{tmp_path}")
    names = ["Apple pie", "Steak"] if labels else ["apple pie", "steak"]
    assert [(p.id, p.name) for p in found] == list(
        zip(["apple_pie-1", "steak-1"], names, strict=True)
    )
    assert all(p.path.is_file() for p in found)


@pytest.mark.parametrize("folder", ["images1024x1024/00000", "thumbnails128x128", ""])
def test_ffhq(tmp_path, folder):
    touch(*(tmp_path / folder / f"{n:05}.png" for n in (1, 0)), tmp_path / folder / "LICENSE.png")
    assert facts(f"ffhq:{tmp_path}") == [("00000", None, None, None), ("00001", None, None, None)]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("imagenet", "n01440764"), ("cub", "images.txt"), ("cars", "cars_meta.mat"),
        ("food101", "meta/test.txt"), ("ffhq", "no photos"), ("imagefolder", "one for each class"),
        ("cifar", "imagefolder, imagenet"),
    ],
)  # fmt: skip
def test_the_wrong_folder(tmp_path, kind, wanted):
    with pytest.raises(UserError, match=wanted):
        photos(f"{kind}:{tmp_path}")
    with pytest.raises(UserError, match="is not a folder|is not understood"):
        photos(f"{kind}:{tmp_path / 'none'}")


DEVKIT_TRUTH = {"ILSVRC2012_validation_ground_truth.txt": "1\n2\n2\n"}


@pytest.mark.parametrize(
    ("kind", "files", "words"),
    [
        ("imagenet", DEVKIT_TRUTH, "meta.mat"),
        ("imagenet", {**DEVKIT_TRUTH, "meta.mat": "no MATLAB file"}, "meta.mat' cannot be read"),
        (
            "imagenet", {"imagenet_2012_validation_synset_labels.txt": f"{ROBIN}\n{TENCH}\n"},
            "does not say .*00000003",
        ),
        ("imagenet", {"val.txt": "ILSVRC2012_val_00000001.JPEG 1000\n"}, "not as published"),
        ("imagenet", {"LOC_val_solution.csv": "a,b\n1,2\n"}, "not as published"),
        ("imagenet", {"val.txt": b"\xff\xfe\xfa"}, "val.txt' cannot be read"),
        (
            "food101",
            {
                "meta/test.txt": "steak/1\n", "meta/classes.txt": "apple_pie\nsteak\n",
                "meta/labels.txt": "Steak\n",
            },
            "has 2 lines and .*labels.txt' 1: they must match",
        ),
        ("cub", {"images.txt": "1\n", "train_test_split.txt": "1\n"}, "not as published"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit(tmp_path, kind, files, words):
    """Not those of the data set, or damaged: said, never a traceback."""
    flat(tmp_path)
    for name, content in files.items():
        touch(tmp_path / name)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        photos(f"{kind}:{tmp_path}")


def test_matlab_files_need_scipy(tmp_path, monkeypatch):
    for name in ("cars_meta.mat", "cars_test_annos_withlabels.mat"):
        touch(tmp_path / "devkit" / name, tmp_path / name)
    for module in ("scipy.io", "scipy.io.matlab", "scipy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="needs the package scipy: pip install 'fastdigin.datasets"):
        photos(f"cars:{tmp_path}")
