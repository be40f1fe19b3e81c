"""Photos: the gallery that packages ship, and pictures that try to break the decoder."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.errors import BadInputError
from workbench.photos import MAX_PIXELS, PhotoLibrary, normalise, prepare
from workbench.settings import Settings


@pytest.fixture
def library() -> PhotoLibrary:
    return PhotoLibrary(Settings())


def encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"\0") -> bytes:
    """A PNG whose header may say anything; the pixels need not exist."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gradient(height: int = 40, width: int = 60) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y * 4, x * 4, y + x], -1).astype(np.uint8))


def test_gallery_is_real_and_credited(library: PhotoLibrary) -> None:
    photos = {photo.id: photo for photo in library.list()}
    assert {"chelsea", "astronaut", "coffee", "rocket", "motorcycle"} <= photos.keys()
    for photo in photos.values():
        assert photo.credit and photo.licence and photo.contains == ()
        assert photo.rgb.shape == (photo.height, photo.width, 3)
        assert photo.rgb.dtype == np.uint8 and not photo.rgb.flags.writeable
        assert len(photo.sha256) == 64
    assert photos["chelsea"].rgb is photos["chelsea"].rgb  # decoded once
    assert photos["coffee"].thumbnail().startswith("data:image/jpeg;base64,")
    assert len(photos["coffee"].thumbnail()) < 12_000


def test_folder_of_the_user(tmp_path: Path) -> None:
    gradient().save(tmp_path / "My cat!.png")
    gradient().save(tmp_path / "my CAT.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    gradient(40, 60).save(tmp_path / "phone.jpg", exif=turned)
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "readme.txt").write_text("not looked at")
    library = PhotoLibrary(Settings(gallery_dir=tmp_path))
    assert [p.id for p in library.list() if p.id.startswith("my-")] == [
        "my-my-cat",
        "my-my-cat-2",
        "my-phone",
    ]
    phone = library.get("my-phone")
    assert (phone.height, phone.width) == (60, 40) == phone.rgb.shape[:2]
    assert phone.contains is None
    assert len(library.problems) == 1 and "notes.png" in library.problems[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode(gradient(1, 1)), ("1 x 1", "at least 32 px")),
        (encode(gradient(31, 300)), ("300 x 31", "at least 32 px")),
        (png(20_000, 20_000), ("400 megapixels", f"at most {MAX_PIXELS // 10**6} megapixels")),
        (png(4_000, 4_000), ("ends before",)),
        (b"this is text, named .png", ("not a picture", "JPEG, PNG")),
        (b"", ("not a picture",)),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", ("not a picture",)),
        (encode(gradient(), "JPEG")[:-300], ("ends before", "again")),
        (encode(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"), ("32-bit", "8 or 16")),
        (b"\xff\xd8\xff\xe0" + bytes(2000), ("not a picture",)),
    ],
    ids=[
        "1x1",
        "too thin",
        "20000x20000",
        "no pixels",
        "text",
        "empty",
        "postscript",
        "truncated",
        "float",
        "header only",
    ],
)
def test_unusable_pictures_end_in_one_sentence(
    library: PhotoLibrary, data: bytes, words: tuple[str, ...]
) -> None:
    with pytest.raises(BadInputError) as caught:
        library.add(data, "photo.png")
    message = str(caught.value)
    assert message.startswith("photo.png") and "\n" not in message and len(message) < 200
    assert all(word in message for word in words), message


def test_limits_on_files(library: PhotoLibrary, tmp_path: Path) -> None:
    small = PhotoLibrary(Settings(max_upload_bytes=2**20))
    (tmp_path / "big.png").write_bytes(bytes(2**20 + 1))
    with pytest.raises(BadInputError, match=r"big\.png has 1\.0 MB; at most 1 MB"):
        small.add(tmp_path / "big.png")
    with pytest.raises(BadInputError, match="no file"):
        library.add(tmp_path)
    with pytest.raises(BadInputError, match="no file"):
        library.add("\0")
    with pytest.raises(BadInputError, match="Upload it again"):
        library.get("upload-0123456789ab")
    with pytest.raises(BadInputError, match=r"no photo '\.\./etc'.*chelsea"):
        library.get("../etc")


def test_cmyk(library: PhotoLibrary) -> None:
    photo = library.add(encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG"), "print.jpg")
    assert np.abs(photo.rgb.astype(int) - (255, 0, 0)).max() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_is_scaled(library: PhotoLibrary, kind: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    photo = library.add(encode(Image.fromarray(values), kind), "scan")
    expected = np.round(values / 65535 * 255)
    assert np.array_equal(photo.rgb, np.stack([expected] * 3, -1).astype(np.uint8))
    assert "16 bit" in photo.note


def test_sixteen_bit_colour(library: PhotoLibrary) -> None:
    row = b"\0" + np.full((40, 3), 0x8040, ">u2").tobytes()
    photo = library.add(png(40, 40, depth=16, rows=row * 40), "colour")
    assert np.all(photo.rgb == 128)


def test_animation_gives_its_first_frame(library: PhotoLibrary) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    photo = library.add(
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "moving.gif"
    )
    assert photo.note == "first of 3 frames"
    assert np.all(photo.rgb == (255, 0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(library: PhotoLibrary, orientation: int) -> None:
    """Pixels are stored so that the tag puts them right: the dark corner must come out top left."""
    upright = np.full((40, 60, 3), 255, np.uint8)
    upright[:20, :20] = 0
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    photo = library.add(encode(stored, exif=exif), "phone")
    assert np.array_equal(photo.rgb, upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(library: PhotoLibrary, mode: str) -> None:
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 20, 40))
    photo = library.add(encode(picture.convert(mode)), "cut out")
    assert np.all(photo.rgb[:, :20] == 0) and np.all(photo.rgb[:, 20:] == 255)
    assert "over white" in photo.note


def test_the_same_file_is_kept_once(library: PhotoLibrary) -> None:
    data = encode(gradient())
    first, second = library.add(data, "a.png"), library.add(data, "b.png")
    assert first is second is library.get(first.id)
    assert first.id == f"upload-{first.sha256[:12]}"


def test_memory_is_bounded() -> None:
    library = PhotoLibrary(Settings(photo_bytes=4 * 2**20, max_upload_bytes=2**20))
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    ids = [library.add(encode(Image.fromarray(noise + i)), f"{i}").id for i in range(6)]
    assert library.get(ids[-1]).rgb.shape == (300, 300, 3)
    with pytest.raises(BadInputError, match="no longer kept"):
        library.get(ids[0])


@pytest.mark.parametrize(
    ("height", "width", "size", "fit", "shape", "crop"),
    [
        (300, 451, 224, "crop", (224, 224), (0, 75, 300, 300)),
        (300, 451, 224, "whole", (160, 224), (0, 0, 300, 451)),
        (451, 300, 512, "whole", (512, 352), (0, 0, 451, 300)),
        (32, 2000, 128, "whole", (32, 128), (0, 0, 32, 2000)),
        (64, 64, 128, "whole", (128, 128), (0, 0, 64, 64)),
    ],
    ids=["crop", "whole wide", "whole tall", "extreme", "square"],
)
def test_prepare(
    library: PhotoLibrary,
    height: int,
    width: int,
    size: int,
    fit: str,
    shape: tuple[int, int],
    crop: tuple[int, int, int, int],
) -> None:
    photo = library.add(encode(Image.effect_noise((width, height), 50).convert("RGB")), "noise")
    prepared = prepare(photo, size, fit)
    assert prepared.rgb.shape == (*shape, 3) and prepared.rgb.dtype == np.uint8
    assert prepared.crop == crop


def test_prepare_reads_only_its_crop(library: PhotoLibrary) -> None:
    """A bicubic kernel reaches beyond the crop; what lies there must not leak in."""
    values = np.zeros((64, 200, 3), np.uint8)
    values[:, :68] = values[:, 132:] = 255
    prepared = prepare(library.add(encode(Image.fromarray(values)), "bars"), 32, "crop")
    assert np.all(prepared.rgb == 0)


@pytest.mark.parametrize(("size", "fit"), [(16, "crop"), (4096, "crop"), (224, "stretch")])
def test_prepare_says_what_is_allowed(library: PhotoLibrary, size: int, fit: str) -> None:
    with pytest.raises(BadInputError, match="must be from 32|Use crop or whole"):
        prepare(library.get("chelsea"), size, fit)


def test_normalise() -> None:
    rgb = np.array([[[255, 0, 124]]], np.uint8)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (124 / 255 - 0.406) / 0.225]
    values = normalise(rgb)
    assert values.shape == (3, 1, 1) and values.dtype == np.float32
    np.testing.assert_allclose(values[:, 0, 0], expected, rtol=1e-6)
