"""Data sets that carry the names of their classes with them."""

from pathlib import Path

from fastdigin.datasets.layout import (
    Photo,
    classes_in_folders,
    first_existing,
    folders_of,
    images_of,
    missing,
    read_lines,
    read_mat,
)
from fastdigin.errors import UserError


def image_folder(folder: Path) -> list[Photo]:
    """PATH/CLASS/*.jpg, as torchvision's ImageFolder; the folder's name is the class's."""
    found = classes_in_folders(folder)
    if not found:
        raise missing("imagefolder", folder, "folder with images, one for each class")
    return found


def cub(folder: Path) -> list[Photo]:
    """CUB-200-2011 as published: images.txt, image_class_labels.txt, train_test_split.txt, images/.

    The test photos. "001.Black_footed_Albatross" is called "Black footed Albatross".
    """
    root = folder / "CUB_200_2011" if (folder / "CUB_200_2011").is_dir() else folder
    tables = []
    for name in ("images.txt", "train_test_split.txt"):
        if not (root / name).is_file():
            raise missing("cub", folder, f"{name} of CUB_200_2011")
        tables.append(dict(line.split(maxsplit=1) for line in read_lines(root / name)))
    paths, in_training = tables
    found = []
    for number, path in paths.items():
        if in_training.get(number) != "0":
            continue
        name = Path(path).parent.name.partition(".")[2].replace("_", " ")
        found.append(Photo(Path(path).stem, root / "images" / path, name, name))
    return found


def cars(folder: Path) -> list[Photo]:
    """Stanford Cars, the test photos.

    As published: cars_test/, and cars_meta.mat with cars_test_annos_withlabels.mat beside it or in
    devkit/ (reading them needs scipy). Or the usual repackaging: test/CLASS/*.jpg.
    """
    meta = first_existing(folder, "devkit/cars_meta.mat", "cars_meta.mat")
    labels = first_existing(
        folder, "cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"
    )
    if meta is None or labels is None:
        by_class = first_existing(folder, "car_data/car_data/test", "car_data/test", "test")
        if by_class is None:
            raise missing(
                "cars", folder,
                "devkit/cars_meta.mat with cars_test_annos_withlabels.mat, nor test/ with a folder "
                "for each class",
            )  # fmt: skip
        return classes_in_folders(by_class)
    names = [str(name) for name in read_mat(meta)["class_names"]]
    found = []
    for row in read_mat(labels)["annotations"].reshape(-1):
        path = folder / "cars_test" / str(row["fname"])
        name = names[int(row["class"]) - 1]
        found.append(Photo(path.stem, path, name, name))
    return found


def food101(folder: Path) -> list[Photo]:
    """Food-101 as published: images/CLASS/*.jpg, meta/test.txt, meta/classes.txt, meta/labels.txt.

    The test photos; the labels ("Apple pie") are the names of the classes ("apple_pie").
    """
    root = folder / "food-101" if (folder / "food-101").is_dir() else folder
    test, classes, labels = (root / "meta" / f"{n}.txt" for n in ("test", "classes", "labels"))
    if not test.is_file():
        raise missing("food101", folder, "meta/test.txt of food-101")
    names = {}
    if classes.is_file() and labels.is_file():
        keys, values = read_lines(classes), read_lines(labels)
        if len(keys) != len(values):
            raise UserError(
                f"'{classes}' has {len(keys)} lines and '{labels}' {len(values)}: they must match"
            )
        names = dict(zip(keys, values, strict=True))
    found = []
    for line in read_lines(test):
        kind, _, stem = line.partition("/")
        name = names.get(kind, kind.replace("_", " "))
        found.append(Photo(f"{kind}-{stem}", root / "images" / f"{line}.jpg", name, name))
    return found


def ffhq(folder: Path) -> list[Photo]:
    """FFHQ: images1024x1024/ or thumbnails128x128/, flat or in folders of a thousand.

    Faces have no class: the source is what the classifier sees.
    """
    root = first_existing(folder, "images1024x1024", "thumbnails128x128") or folder
    files = [*images_of(root), *(f for sub in folders_of(root) for f in images_of(sub))]
    return [Photo(path.stem, path) for path in files if path.stem.isdecimal()]
