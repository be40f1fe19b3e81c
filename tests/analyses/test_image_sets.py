"""Which images a receptive field is averaged over, and that each is what its name says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.errors import BadInputError
from workbench.image_sets import ErfImages, FolderImages, PhotoSet, names_below, pictures_below
from workbench.photos import PhotoLibrary, normalise, prepare
from workbench.settings import Settings


@pytest.fixture(scope="module")
def library() -> PhotoLibrary:
    return PhotoLibrary(Settings())


def picture(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six photos in two folders, a text, a hidden file, one broken and one tiny photo."""
    for i in range(6):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", seed=i)
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "b" / "broken.JPG").write_bytes(b"\xff\xd8\xff\xe0 not much")
    picture(tmp_path / "tiny.png", 16, 64)
    return tmp_path


# The view's photo and crops of the gallery


def test_the_views_photo_comes_first_then_crops_with_its_aspect(library):
    prepared = prepare(library.get("coffee"), 96, "whole")
    images = ErfImages(library, "coffee", prepared, 20, seed=0)
    names = [name for name, _ in images]
    assert names == list(images.names) and len(set(names)) == 20 and names[0] == "coffee"
    np.testing.assert_array_equal(images[0][1], normalise(prepared.rgb))
    height, width = prepared.rgb.shape[:2]
    assert {image.shape for _, image in images} == {(3, height, width)}
    for crop in images.crops:
        photo = library.get(crop.photo)
        assert 0 <= crop.top <= photo.height - crop.height
        assert 0 <= crop.left <= photo.width - crop.width
        assert crop.height / crop.width == pytest.approx(height / width, rel=0.02)
    crop = images.crops[4]
    photo = library.get(crop.photo)
    by_hand = photo.rgb[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    resized = Image.fromarray(by_hand).resize((width, height), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[5][1], normalise(np.asarray(resized)))


def test_gallery_crops_are_repeatable_and_described(library):
    prepared = prepare(library.get("coffee"), 64, "crop")
    images, again = (ErfImages(library, "coffee", prepared, 20, seed=0) for _ in range(2))
    assert images.digest == again.digest
    np.testing.assert_array_equal(images[7][1], again[7][1])
    others = (
        ErfImages(library, "coffee", prepared, 20, seed=1),
        ErfImages(library, "coffee", prepared, 19, seed=0),
        ErfImages(library, "rocket", prepare(library.get("rocket"), 64, "crop"), 20, seed=0),
        ErfImages(library, "coffee", prepare(library.get("coffee"), 96, "crop"), 20, seed=0),
    )
    assert len({images.digest, *(other.digest for other in others)}) == 5
    n_photos = len(library.list()) - 1
    assert images.words == f"coffee and 19 seeded crops of {min(19, n_photos)} photos (seed 0)"
    assert ErfImages(library, "coffee", prepared, 1, seed=0).words == "coffee alone"
    assert len(ErfImages(library, "coffee", prepared, 5000, seed=0)) == 5000
    for n in (0, 5001):
        with pytest.raises(BadInputError, match="1 to 5,000"):
            ErfImages(library, "coffee", prepared, n, seed=0)


def test_slices_and_positions(library):
    images = ErfImages(library, "coffee", prepare(library.get("coffee"), 32, "crop"), 5, seed=0)
    assert [name for name, _ in images[1:3]] == list(images.names[1:3])
    assert images[-1][0] == images.names[4]
    with pytest.raises(IndexError):
        images[5]


# Chosen photos


def test_chosen_photos_are_prepared_as_the_view_is(library):
    ids = ("coffee", "rocket", "coffee")
    images = PhotoSet(library, ids, (96, 96))
    assert len(images) == 2
    for photo_id, (name, image) in zip(ids, images, strict=False):
        photo = library.get(photo_id)
        assert name == photo.title
        np.testing.assert_array_equal(image, normalise(prepare(photo, 96, "crop").rgb))
    assert images.words == "2 chosen photos, each cut to its centre and resized to 96 x 96 px"
    assert images.digest != PhotoSet(library, ids, (64, 96)).digest
    assert images.digest != PhotoSet(library, ids[1:], (96, 96)).digest
    assert images.digest == PhotoSet(library, ids[:2], (96, 96)).digest


def test_the_shape_of_a_whole_photo_is_kept_for_the_set(library):
    shape = prepare(library.get("rocket"), 128, "whole").rgb.shape[:2]
    assert shape[0] != shape[1]
    assert {image.shape[1:] for _, image in PhotoSet(library, ("coffee", "chelsea"), shape)} == {
        shape
    }


def test_uploads_stay_while_the_set_lives(tmp_path):
    library = PhotoLibrary(Settings(photo_bytes=2**20))
    ids = [library.add(picture(tmp_path / f"{i}.png", 200, 200, i)).id for i in range(4)]
    images = PhotoSet(library, ids[-1:], (64, 64))
    for i in range(4, 8):  # drops the first ones
        library.add(picture(tmp_path / f"{i}.png", 200, 200, i))
    with pytest.raises(BadInputError, match="Upload it again"):
        library.get(ids[-1])
    assert images[0][0] == "3.png" and np.isfinite(images[0][1]).all()


def test_equal_titles_are_told_apart(tmp_path):
    library = PhotoLibrary(Settings())
    ids = [library.add(picture(tmp_path / str(i) / "same.png", seed=i)).id for i in range(2)]
    assert PhotoSet(library, ids, (32, 32)).names == tuple(f"same.png ({i})" for i in ids)


def test_an_empty_set_and_an_unknown_photo(library):
    with pytest.raises(BadInputError, match="0 photos. Choose from 1"):
        PhotoSet(library, (), (64, 64))
    with pytest.raises(BadInputError, match="no photo 'nobody'"):
        PhotoSet(library, ("nobody",), (64, 64))


# A folder


def test_every_photo_below_a_folder(folder):
    images = FolderImages(folder, (32, 40))
    expected = [f"{'ab'[i % 2]}/{i}.png" for i in range(6)] + ["b/broken.JPG", "tiny.png"]
    assert sorted(images.names) == sorted(expected)
    good, bad = [], {}
    for i, name in enumerate(images.names):
        try:
            good.append(images[i])
        except BadInputError as error:
            bad[name] = str(error)
    assert {image.shape for _, image in good} == {(3, 32, 40)} and len(good) == 6
    assert set(bad) == {"b/broken.JPG", "tiny.png"}
    assert "b/broken.JPG" in bad["b/broken.JPG"] and "at least 32 px" in bad["tiny.png"]
    assert images.words == (
        f"all 8 photos below {folder}, order by seed 0, each cut to its centre and resized to "
        "32 x 40 px"
    )


def test_the_cut_is_the_centre(tmp_path):
    rgb = np.zeros((60, 100, 3), dtype=np.uint8)
    rgb[:, 20:80] = 255  # exactly the centre square
    Image.fromarray(rgb).save(tmp_path / "square.png")
    ((_, image),) = FolderImages(tmp_path, (60, 60))
    np.testing.assert_array_equal(image, normalise(np.full((60, 60, 3), 255, dtype=np.uint8)))


def test_a_seeded_choice(folder):
    some, again = FolderImages(folder, (32, 32), 3), FolderImages(folder, (32, 32), 3)
    assert some.names == again.names and some.digest == again.digest
    assert some.words.startswith(f"3 of 8 photos below {folder}, order by seed 0")
    everything = FolderImages(folder, (32, 32))
    assert everything.names[:3] == some.names  # more images go on from the same ones
    orders = {FolderImages(folder, (32, 32), seed=seed).names for seed in range(5)}
    assert len(orders) > 1
    more = FolderImages(folder, (32, 32), 5000)
    assert more.names == everything.names and "(5,000 asked for)" in more.words


def test_the_digest_follows_the_bytes(folder, tmp_path_factory):
    images = FolderImages(folder, (32, 32))
    other = tmp_path_factory.mktemp("copy")
    for path in folder.rglob("*"):
        if path.is_file():
            (other / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (other / path.relative_to(folder)).write_bytes(path.read_bytes())
    assert FolderImages(other, (32, 32)).digest == images.digest
    picture(other / "a" / "0.png", seed=99)
    assert FolderImages(other, (32, 32)).digest != images.digest
    assert FolderImages(folder, (32, 48)).digest != images.digest


def test_files_that_turn_bad_later(folder):
    images = FolderImages(folder, (32, 32))
    gone = images.names.index("a/0.png")
    (folder / "a" / "0.png").unlink()
    with pytest.raises(BadInputError, match="a/0.png is no longer there"):
        images[gone]
    large = images.names.index("a/2.png")
    with (folder / "a" / "2.png").open("r+b") as file:
        file.truncate(300 * 2**20)  # sparse: takes no space
    with pytest.raises(BadInputError, match="300 MB; at most 256 MB"):
        images[large]
    pipe = images.names.index("a/4.png")
    (folder / "a" / "4.png").unlink()
    os.mkfifo(folder / "a" / "4.png")
    with pytest.raises(BadInputError, match="a/4.png is no longer there, or no file"):
        images[pipe]
    assert images.digest  # bad files have their place in it


def test_odd_names_fit_on_one_line(tmp_path):
    picture(tmp_path / "a\nb.png")
    picture(tmp_path / os.fsdecode(b"caf\xe9.png"))
    images = FolderImages(tmp_path, (32, 32))
    assert set(images.names) == {"a?b.png", "caf?.png"}
    assert len(list(images)) == 2
    images.words.encode()


def test_folders_without_photos(tmp_path):
    with pytest.raises(BadInputError, match="no folder"):
        FolderImages(tmp_path / "missing", (32, 32))
    with pytest.raises(BadInputError, match=r"no photo in .*names end in .jpg"):
        FolderImages(tmp_path, (32, 32))
    picture(tmp_path / "a.png")
    with pytest.raises(BadInputError, match="0 images"):
        FolderImages(tmp_path, (32, 32), 0)


def test_names_of_files_tell_them_apart(tmp_path):
    files = [tmp_path / "a" / "one.png", tmp_path / "b" / "one.png", tmp_path / "a" / "\n.png"]
    assert names_below(files) == ("a/one.png", "b/one.png", "a/?.png")
    assert names_below(files[:1]) == ("one.png",) and names_below([]) == ()
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "a" / "._one.png").write_bytes(b"")
    (tmp_path / "a" / "one.txt").write_bytes(b"")
    assert pictures_below(tmp_path) == [files[2], files[0], files[1]]
    with pytest.raises(BadInputError, match="no folder"):
        pictures_below(tmp_path / "none")
