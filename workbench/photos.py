"""Photos: the gallery that installed packages ship, the user's folder, and uploads.

A photo is 8-bit RGB in the pixels of the original file, turned as its EXIF tag says, transparent
parts over white. Colour profiles are not applied, as in the usual evaluation of ImageNet models.
Positions are `(y, x)`. Every file is hostile until it is decoded.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from workbench.cache import ResultCache
from workbench.errors import BadInputError
from workbench.settings import Settings

# What Pillow may try: formats of photographs, none whose reader starts another program (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FORMATS_IN_WORDS = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# Pillow warns at this number and refuses at twice as many, before it decodes anything.
WARN_PIXELS = 12_500_000
MAX_PIXELS = 2 * WARN_PIXELS
MIN_SIDE = 32  # px: one token of the last stage
MAX_INPUT_SIDE = 2048  # px
MAX_GALLERY_FILES = 200
STRIDE = 32  # px: sides of a whole photo are rounded to it
IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)
TURNED_BY_A_QUARTER = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Photo:
    """One photo; pixels and hash are read when first asked for, again where memory was short."""

    id: str
    title: str
    credit: str
    licence: str
    height: int  # px of the original, after the EXIF turn
    width: int
    contains: (
        tuple[str, ...] | None
    )  # ImageNet class names in view; () = none of Imagenette's, None = unknown
    note: str = ""  # what happened on decoding: "first of 12 frames"
    source: Path | bytes = field(repr=False)  # the file as it is
    cache: ResultCache = field(repr=False)

    @property
    def rgb(self) -> np.ndarray:
        """uint8 `[H, W, 3]`, read-only."""
        kept = self.cache.get(f"rgb {self.id}")
        if kept is None:
            kept = self.cache.keep(f"rgb {self.id}", decode(self.file_bytes(), self.title).rgb)
        return kept

    @property
    def sha256(self) -> str:
        """Hash of the file's bytes."""
        kept = self.cache.get(f"sha256 {self.id}")
        if kept is None:
            digest = hashlib.sha256(self.file_bytes()).hexdigest()
            kept = self.cache.keep(f"sha256 {self.id}", digest)
        return kept

    def file_bytes(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise BadInputError(f"{self.title} cannot be read any more: {error}.") from error

    def thumbnail(self, side: int = 128) -> str:
        """The whole photo, longer side `side` px, as a JPEG data address for an `<img>`."""
        key = f"thumbnail {side} {self.id}"
        kept = self.cache.get(key)
        if kept is None:
            small = Image.fromarray(self.rgb)
            small.thumbnail((side, side), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            small.save(file, "JPEG", quality=85)
            text = base64.b64encode(file.getvalue()).decode()
            kept = self.cache.keep(key, f"data:image/jpeg;base64,{text}")
        return kept


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    rgb: np.ndarray  # uint8 [H, W, 3]
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    rgb: np.ndarray  # uint8 [h, w, 3]: the network's input before normalisation
    crop: tuple[int, int, int, int]  # (top, left, height, width) in pixels of the original


@dataclass(frozen=True, slots=True)
class Shipped:
    """A photograph inside an installed package; credit and licence as that package states them."""

    id: str
    title: str
    package: str
    file: str
    credit: str
    licence: str


# Only files inside the wheels: nothing is downloaded. None shows one of Imagenette's ten classes.
SHIPPED = (
    Shipped(
        "chelsea", "Chelsea the cat", "skimage", "data/chelsea.png", "Stéfan van der Walt", "CC0"
    ),
    Shipped(
        "astronaut", "Eileen Collins", "skimage", "data/astronaut.png", "NASA", "public domain"
    ),
    Shipped("coffee", "Coffee cup", "skimage", "data/coffee.png", "Rachel Michetti", "CC0"),
    Shipped("rocket", "Falcon 9 launch", "skimage", "data/rocket.jpg", "SpaceX", "public domain"),
    Shipped(
        "motorcycle",
        "Motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        "D. Scharstein et al., Middlebury stereo benchmark, GCPR 2014",
        "shipped with scikit-image, no licence stated",
    ),
    Shipped("camera", "Photographer", "skimage", "data/camera.png", "Lav Varshney", "CC0"),
    Shipped(
        "coins",
        "Greek coins",
        "skimage",
        "data/coins.png",
        "Brooklyn Museum",
        "no known copyright restrictions",
    ),
    Shipped(
        "hubble",
        "Hubble deep field",
        "skimage",
        "data/hubble_deep_field.jpg",
        "NASA",
        "public domain",
    ),
    Shipped("retina", "Human retina", "skimage", "data/retina.jpg", "Mikael Häggström", "CC0"),
    Shipped(
        "tissue",
        "Stained tissue",
        "skimage",
        "data/ihc.png",
        "Center for Microscopy and Molecular Imaging",
        "no known copyright restrictions",
    ),
    Shipped("brick", "Brick wall", "skimage", "data/brick.png", "CC0Textures", "CC0"),
    Shipped("grass", "Grass", "skimage", "data/grass.png", "linolafett", "CC0"),
    Shipped(
        "china",
        "Summer Palace",
        "sklearn",
        "datasets/images/china.jpg",
        "danielbuechele",
        "CC BY 2.0",
    ),
    Shipped("flower", "Flower", "sklearn", "datasets/images/flower.jpg", "vultilion", "CC BY 2.0"),
)


class PhotoLibrary:
    """Gallery and uploads by id. Safe under threads; memory bounded by `Settings.photo_bytes`."""

    def __init__(self, settings: Settings) -> None:
        limit_pixels()
        self._max_upload_bytes = settings.max_upload_bytes
        # A quarter for uploads as they came, the rest for pixels, which can be decoded again.
        self._uploads = ResultCache(settings.photo_bytes // 4)
        self._cache = ResultCache(settings.photo_bytes * 3 // 4)
        self._gallery: dict[str, Photo] = {}
        self.problems: tuple[
            str, ...
        ] = ()  # files of the user's folder that were left out, and why
        for shipped in SHIPPED:
            path = _file_in_package(shipped.package, shipped.file)
            if path is not None:
                self._gallery[shipped.id] = self._from_file(
                    path, shipped.id, shipped.title, shipped.credit, shipped.licence, ()
                )
        if settings.gallery_dir is not None:
            self._add_folder(settings.gallery_dir)

    def list(self) -> tuple[Photo, ...]:
        """The gallery: shipped photographs, then the user's folder by name."""
        return tuple(self._gallery.values())

    def get(self, photo_id: str) -> Photo:
        photo = self._gallery.get(photo_id) or self._uploads.get(photo_id)
        if photo is None and photo_id.startswith("upload-"):
            raise BadInputError(
                f"The uploaded photo {_short(photo_id)} is no longer kept here. Upload it again."
            )
        if photo is None:
            known = ", ".join(self._gallery)
            raise BadInputError(
                f"There is no photo {_short(photo_id)!r}. Choose one of: {known}; or upload one."
            )
        return photo

    def add(self, source: Path | str | bytes, name: str = "") -> Photo:
        """Photo of an uploaded file; the same bytes give the same photo. `name` is only shown."""
        data = (
            source
            if isinstance(source, bytes)
            else _read_file(Path(source), self._max_upload_bytes)
        )
        title = _short(Path(name or ("photo" if isinstance(source, bytes) else source)).name)
        if len(data) > self._max_upload_bytes:
            raise BadInputError(_too_many_bytes(title, len(data), self._max_upload_bytes))
        digest = hashlib.sha256(data).hexdigest()
        photo_id = f"upload-{digest[:12]}"
        known = self._uploads.get(photo_id)
        if known is not None:
            return known
        decoded = decode(data, title)
        self._cache.keep(f"rgb {photo_id}", decoded.rgb)
        photo = Photo(
            id=photo_id,
            title=title,
            credit="uploaded",
            licence="not stated",
            height=decoded.rgb.shape[0],
            width=decoded.rgb.shape[1],
            contains=None,
            note=decoded.note,
            source=data,
            cache=self._cache,
        )
        return self._uploads.keep(photo_id, photo)

    def _from_file(
        self,
        path: Path,
        photo_id: str,
        title: str,
        credit: str,
        licence: str,
        contains: tuple[str, ...] | None,
    ) -> Photo:
        height, width = _size_on_disk(path)
        return Photo(
            id=photo_id,
            title=title,
            credit=credit,
            licence=licence,
            height=height,
            width=width,
            contains=contains,
            source=path,
            cache=self._cache,
        )

    def _add_folder(self, folder: Path) -> None:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        problems = []
        for path in files[:MAX_GALLERY_FILES]:
            stem = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "photo"
            photo_id = base = f"my-{stem}"[:60]
            n = 2
            while photo_id in self._gallery:
                photo_id, n = f"{base}-{n}", n + 1
            try:
                self._gallery[photo_id] = self._from_file(
                    path, photo_id, _short(path.stem), "from your folder", "not stated", None
                )
            except BadInputError as error:
                problems.append(str(error))
        if len(files) > MAX_GALLERY_FILES:
            problems.append(
                f"The folder holds {len(files)} photos; the first {MAX_GALLERY_FILES} by name "
                "are shown."
            )
        self.problems = tuple(problems)


def limit_pixels() -> None:
    """Sets Pillow's own limit for the whole process: Gradio decodes uploads before we see them."""
    Image.MAX_IMAGE_PIXELS = WARN_PIXELS
    # Between the limit and twice the limit Pillow warns; for us that range is allowed.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def decode(data: bytes, name: str) -> Decoded:
    """Picture of a file's bytes, or BadInputError with one sentence that names the file."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_sides(name, *picture.size)
            notes = _notes(picture)
            picture.load()
            rgb = np.asarray(_to_rgb(ImageOps.exif_transpose(picture), name), dtype=np.uint8)
    except BadInputError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise _readable(error, name) from error
    return Decoded(rgb=rgb, note="; ".join(notes))


def prepare(photo: Photo, size: int, fit: str) -> Prepared:
    """The network's input: bicubic with antialiasing, as Pillow does it.

    `crop` takes the centre square and makes it `size x size`; `whole` keeps everything, makes the
    longer side `size` and rounds the other to a multiple of 32 px.
    """
    if not MIN_SIDE <= size <= MAX_INPUT_SIDE:
        raise BadInputError(
            f"The input size is {size} px; it must be from {MIN_SIDE} to {MAX_INPUT_SIDE} px."
        )
    height, width = photo.height, photo.width
    if fit == "crop":
        side = min(height, width)
        crop = ((height - side) // 2, (width - side) // 2, side, side)
        out_height = out_width = size
    elif fit == "whole":
        crop = (0, 0, height, width)
        longer = max(height, width)
        out_height, out_width = (
            size if side == longer else max(STRIDE, round(side * size / longer / STRIDE) * STRIDE)
            for side in (height, width)
        )
    else:
        raise BadInputError(f"The fit {fit!r} is unknown. Use crop or whole.")
    top, left, crop_height, crop_width = crop
    # Cut first: with `box=` Pillow's kernel would read pixels beyond the crop.
    cut = Image.fromarray(photo.rgb[top : top + crop_height, left : left + crop_width])
    resized = cut.resize((out_width, out_height), Image.Resampling.BICUBIC)
    return Prepared(rgb=np.asarray(resized), crop=crop)


def normalise(rgb: np.ndarray) -> np.ndarray:
    """uint8 `[h, w, 3]` -> float32 `[3, h, w]`: in [0, 1], minus the mean, over the deviation."""
    scaled = (rgb.astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """8-bit RGB of any picture mode: 16 bit scaled, transparent parts over white."""
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 and would turn nearly everything white.
        values = np.asarray(picture).astype(np.float32)
        picture = Image.fromarray(np.round(values * (255 / 65535)).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise BadInputError(
            f"{name} holds 32-bit numbers without a stated white. "
            "Save it with 8 or 16 bits per channel."
        )
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _notes(picture: Image.Image) -> list[str]:
    """What the reader must know about the decoding, in words."""
    notes = []
    n_frames = getattr(picture, "n_frames", 1)
    # MPO is how phones store a JPEG with a preview or depth picture: no animation.
    if n_frames > 1 and picture.format != "MPO":
        notes.append(f"first of {n_frames} {'pages' if picture.format == 'TIFF' else 'frames'}")
    if picture.mode.startswith("I;16"):
        notes.append("16 bit scaled to 8")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        notes.append("transparent parts over white")
    return notes


def _check_sides(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadInputError(_too_many_pixels(name, f"{width:,} x {height:,} px"))
    if min(width, height) < MIN_SIDE:
        raise BadInputError(
            f"{name} is {width} x {height} px. The shorter side must be at least {MIN_SIDE} px: "
            "use a larger picture."
        )


def _size_on_disk(path: Path) -> tuple[int, int]:
    """(height, width) after the EXIF turn, from the header alone."""
    name = _short(path.name)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise _readable(error, name) from error
    _check_sides(name, width, height)
    return (width, height) if orientation in TURNED_BY_A_QUARTER else (height, width)


def _readable(error: Exception, name: str) -> BadInputError:
    """One sentence for a picture that could not be read."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(pixels[1]) / 1e6:,.0f} megapixels" if pixels else "too large"
        return BadInputError(_too_many_pixels(name, size))
    if isinstance(error, UnidentifiedImageError):
        return BadInputError(f"{name} is not a picture that can be read. Use {FORMATS_IN_WORDS}.")
    # Pillow says "image file is truncated", "Truncated File Read" or "broken data stream".
    words = str(error).lower()
    if "truncated" in words or "data stream" in words or isinstance(error, EOFError):
        return BadInputError(f"{name} ends before the picture is complete. Save it again.")
    return BadInputError(
        f"{name} is damaged or of an unusual kind ({type(error).__name__}). "
        "Save it again as JPEG or PNG."
    )


def _too_many_pixels(name: str, size: str) -> str:
    return (
        f"{name} has {size}; at most {MAX_PIXELS // 10**6} megapixels (such as 5,000 x 5,000 px) "
        "are read. Make it smaller: the network sees at most 1,024 px."
    )


def _too_many_bytes(name: str, size: int, limit: int) -> str:
    return f"{name} has {size / 2**20:.1f} MB; at most {limit / 2**20:.0f} MB are read. Shrink it."


def _read_file(path: Path, limit: int) -> bytes:
    name = _short(path.name)
    try:
        # A named pipe or a device would block or never end.
        if not path.is_file():
            raise BadInputError(
                f"There is no file {_short(str(path))!r}. Give the path of a picture."
            )
        if path.stat().st_size > limit:
            raise BadInputError(_too_many_bytes(name, path.stat().st_size, limit))
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadInputError(f"{name} cannot be read: {error}.") from error


def _file_in_package(package: str, file: str) -> Path | None:
    """Path of a file of an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((p for folder in folders or () if (p := Path(folder) / file).is_file()), None)


def _short(text: str) -> str:
    """A name from outside, fit for one line of a message."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 60 else clean[:40] + "..." + clean[-17:]
