from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.data import open_data
from convoy.data.folder import FolderSource, decode, read_folder
from convoy.errors import DataError

Picture = Callable[..., Path]
COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cow": (0, 0, 250)}


@pytest.fixture
def classes(tmp_path: Path, picture: Picture) -> Path:
    """DIR/<class>/n.png, ten images each; the red, green or blue channel tells the class, the others the number."""
    for name, colour in COLOURS.items():
        for i in range(10):
            picture(tmp_path / name / f"{i}.png", tuple(c or i for c in colour))
    return tmp_path


@pytest.fixture
def parted(tmp_path: Path, picture: Picture) -> Path:
    for part, count in (("train", 4), ("validation", 2)):
        for name, colour in COLOURS.items():
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.png", tuple(c or i for c in colour))
    return tmp_path


def test_train_beside_validation(parted: Path) -> None:
    parts = read_folder(str(parted))
    assert parts.classes == ("ant", "bee", "cow")
    assert parts.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert parts.validation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert parts.train.shape == (3, 8, 8)
    assert parts.notes == ()
    images = parts.train.take(np.array([5, 10]))
    assert images[:, :, 0, 0].tolist() == [[1, 250, 1], [2, 2, 250]]
    assert (images == images[:, :, :1, :1]).all()


@pytest.mark.parametrize("name", ["val", "valid", "test"])
def test_other_names_of_the_validation_part(parted: Path, name: str) -> None:
    (parted / "validation").rename(parted / name)
    assert len(read_folder(str(parted)).validation.labels) == 6


def test_validation_may_lack_a_class_but_not_bring_one(parted: Path, picture: Picture) -> None:
    (parted / "validation" / "ant").rename(parted / "put-aside")
    assert read_folder(str(parted)).validation.labels.tolist() == [1, 1, 2, 2]
    picture(parted / "validation" / "dog" / "0.png")
    with pytest.raises(DataError, match="has the class 'dog', which the training part lacks"):
        read_folder(str(parted))


def test_a_fifth_of_every_class_is_set_aside(classes: Path) -> None:
    parts = read_folder(str(classes))
    assert np.bincount(parts.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(parts.validation.labels).tolist() == [2, 2, 2]
    assert parts.notes == ("a fifth of every class was set aside for validation (6 images)",)
    assert isinstance(parts.train, FolderSource)
    assert isinstance(parts.validation, FolderSource)
    assert not set(parts.train.paths) & set(parts.validation.paths)
    again = read_folder(str(classes)).validation
    assert isinstance(again, FolderSource)
    assert again.paths == parts.validation.paths


def test_the_split_does_not_depend_on_where_the_folder_lies(
    classes: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def names(folder: Path) -> list[str]:
        part = read_folder(str(folder)).validation
        assert isinstance(part, FolderSource)
        return [path.relative_to(folder).as_posix() for path in part.paths]

    before = names(classes)
    moved = classes.rename(tmp_path_factory.mktemp("other") / "folder")
    assert names(moved) == before


def test_hidden_and_other_files_are_ignored(parted: Path, picture: Picture) -> None:
    (parted / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (parted / "train" / "ant" / "._0.png").write_bytes(b"x")
    (parted / "train" / "ant" / "readme.txt").write_text("x")
    picture(parted / "train" / ".cache" / "1.png")
    picture(parted / "train" / "ant" / ".hidden" / "1.png")
    picture(parted / "train" / "ant" / "deeper" / "9.JPG")
    parts = read_folder(str(parted))
    assert parts.classes == ("ant", "bee", "cow")
    assert np.bincount(parts.train.labels).tolist() == [5, 4, 4]


def test_hidden_parents_do_not_hide(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        for i in range(2):
            picture(tmp_path / ".home" / name / f"{i}.png", (i, 0, 0))
    assert len(read_folder(str(tmp_path / ".home")).train.labels) == 2


def test_resized_to_cover_and_cropped_at_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle third stays, black sides go
    Image.fromarray(wide).save(tmp_path / "wide.png")
    out = decode(tmp_path / "wide.png", (3, 5, 5))
    assert out.shape == (3, 5, 5)
    assert (out[:, :, 1:4] == 255).all()
    assert out.mean() > 240


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 128), [10, 20, 30]),
        ("L", 40, [40, 40, 40]),
        ("LA", (40, 9), [40, 40, 40]),
        ("1", 1, [255, 255, 255]),
        ("I;16", 40 * 256 + 7, [40, 40, 40]),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(
    tmp_path: Path, picture: Picture, mode: str, colour: object, expected: list[int]
) -> None:
    path = picture(tmp_path / "a.png", colour, mode=mode)
    assert decode(path, (3, 8, 8))[:, 4, 4].tolist() == expected


def test_palettes_with_transparency_raise_no_warning(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(tmp_path / "a.png", (3, 8, 8))[:, 0, 0].tolist() == [10, 200, 30]


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("L", (8, 4), 0)
    image.paste(255, (0, 0, 4, 4))  # left half lit
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the left side becomes the top
    image.save(tmp_path / "a.png", exif=exif)
    assert decode(tmp_path / "a.png", (1, 8, 4))[0, :, 0].tolist() == [255] * 4 + [0] * 4


def test_grey_sets_have_one_channel(tmp_path: Path, picture: Picture) -> None:
    for name, mode in (("a", "L"), ("b", "1")):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png", 1, mode=mode)
    assert read_folder(str(tmp_path)).train.shape == (1, 8, 8)
    picture(tmp_path / "c" / "0.png")
    assert read_folder(str(tmp_path)).train.shape == (3, 8, 8)


def test_the_size_unless_given(parted: Path, picture: Picture) -> None:
    assert read_folder(str(parted), 5).train.shape == (3, 5, 5)
    picture(parted / "train" / "bee" / "0.png", size=(20, 30))
    parts = read_folder(str(parted))
    assert parts.train.shape == (3, 8, 8)
    assert parts.notes == ("images are resized and cropped to 8x8 pixels",)
    picture(parted / "train" / "ant" / "0.png", size=(300, 200))
    assert read_folder(str(parted)).train.shape == (3, 224, 224)


def test_decoded_once_within_the_memory_bound(parted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counting(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
        decoded.append(path.name)
        return decode(path, shape)

    monkeypatch.setattr("convoy.data.folder.decode", counting)
    paths = sorted((parted / "train" / "ant").iterdir())
    source = FolderSource(paths, np.zeros(4, np.int64), (3, 8, 8), cache_bytes=2 * 3 * 8 * 8 + 7)
    assert decoded == []  # nothing before it is asked for
    first = source.take(np.arange(4))
    again = source.take(np.arange(4))
    assert (first == again).all()
    assert decoded == ["0.png", "1.png", "2.png", "3.png", "2.png", "3.png"]
    first[:] = 0
    assert source.take(np.array([0]))[0, 0, 0, 0] == 250  # what was handed out is not the cache


def test_several_threads_may_read(classes: Path) -> None:
    source = read_folder(str(classes)).train
    expected = read_folder(str(classes)).train.take(np.arange(24))
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(source.take(np.arange(24)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all((one == expected).all() for one in got)


def test_trains_through_open_data(classes: Path) -> None:
    data = open_data(f"folder:{classes}", batch_size=7, image_size=6, augment=True)
    assert data.train.augment is not None
    batches = list(data.train.iterate(0))
    assert [tuple(x.shape) for x, _ in batches] == [(7, 3, 6, 6)] * 3 + [(3, 3, 6, 6)]
    assert data.mean[0] == pytest.approx(data.train.source.take(np.arange(24))[:, 0].mean())
    assert open_data(f"folder:{classes}", batch_size=7).train.augment is None


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp"])
def test_an_unreadable_image_is_named(parted: Path, picture: Picture, damage: str, ending: str) -> None:
    path = picture(parted / "train" / "bee" / f"damaged.{ending}", size=(40, 40))
    if damage == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "text": b"this is text", "empty": b""}[damage])
    with pytest.raises(DataError) as caught:
        open_data(f"folder:{parted}", batch_size=4)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_an_image_that_vanished_reaches_the_one_who_trains(parted: Path) -> None:
    source = read_folder(str(parted)).train
    (parted / "train" / "cow" / "3.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*3\.png': No such file"):
        source.take(np.array([11]))


def test_folders_that_cannot_be_used(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(DataError, match="no folder was given for 'folder'"):
        read_folder(None)
    with pytest.raises(DataError, match="has no sub-folders"):
        read_folder(str(tmp_path))
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "full" / "0.png")
    with pytest.raises(DataError, match=r"the class folder '.*empty' has no images"):
        read_folder(str(tmp_path))
    (tmp_path / "empty").rmdir()
    with pytest.raises(DataError, match="belong to one class"):
        read_folder(str(tmp_path))
    picture(tmp_path / "other" / "0.png")
    with pytest.raises(DataError, match="no validation images are left"):
        read_folder(str(tmp_path))


def test_a_source_travels_as_paths_and_opens_its_files_there(parted: Path) -> None:
    here = read_folder(str(parted)).train
    there = pickle.loads(pickle.dumps(here))
    places = np.arange(len(here.labels))
    assert np.array_equal(there.take(places), here.take(places))
    assert np.array_equal(there.labels, here.labels)
    (parted / "train" / "ant" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png"):
        pickle.loads(pickle.dumps(here)).take(places)
