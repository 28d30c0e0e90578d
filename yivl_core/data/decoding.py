"""Bytes of an image file -> 8-bit RGB pixels as a person would see them, or the reason why not.

Decodes in full, since a header does not show that the rest is cut off. The size is looked at before any pixel is decoded, and all
threads together decode a bounded number of pixels at a time.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from yivl_core.data.configuration import MAX_PIXELS_LIMIT
from yivl_core.errors import DatasetError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_FORMAT_LIST = "PNG, JPEG, GIF, WebP, BMP, TIFF or PPM"

Depth = Literal["full", "header"]

HEAD_BYTES = 1024  # that tell what a file is
_ORIENTATION = 0x0112  # EXIF's tag; of its values those that turn an image on its side
_SWAPPING_ORIENTATIONS = frozenset({5, 6, 7, 8})
_SUPPORTED_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"P5\n", b"P6\n")
_UNSUPPORTED_SIGNATURES = {
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\x00\x00\x01\x00": "an icon",
    b"%!PS": "PostScript",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
}
_OTHER_SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"PK\x05\x06": "an empty ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"(\xb5/\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
}
_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"})


class ImageError(DatasetError):
    """An image cannot be used.

    Attributes:
        kind: why it may not be opened or is not there: `image_missing`, `path_escape`, `url_not_allowed`, `control_char`,
            `bad_unicode`, `fetch_failed`; or why it cannot be read: `truncated`, `corrupt`, `not_an_image`, `empty`,
            `unsupported_format`, `too_many_pixels`, `too_many_bytes`, `out_of_memory`, `permission_denied`, `not_a_file`,
            `image_changed`.
        message: what is wrong.
        remedy: how to mend it.
    """

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.kind = kind
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str, str]]:
        return type(self), (self.kind, self.message, self.remedy)  # for its way between processes


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """Pixels, and how they were stored.

    Attributes:
        image: RGB, 8 bit: EXIF orientation applied, transparency over white, 16-bit grey scaled, first frame.
        mode: Pillow's name of the pixels as they are stored (`L`, `RGBA`, `P`, `I;16` ...).
        format: Pillow's name of the file format (`PNG` ...).
        is_animated: there are further frames or pages, which are left out.
    """

    image: Image.Image
    mode: str
    format: str
    is_animated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedImage:
    """What an image file holds, without its pixels.

    Attributes:
        width, height: in pixels, as it is shown (EXIF orientation applied).
        mode, format, is_animated: as in `DecodedImage`.
    """

    width: int
    height: int
    mode: str
    format: str
    is_animated: bool


def decode_image(data: bytes | IO[bytes], max_pixels: int) -> DecodedImage:
    """The pixels of an image file.

    Args:
        data: its bytes, or the file opened for reading.
        max_pixels: most pixels (width x height); more are refused before they are decoded.

    Raises:
        ImageError: of kind `truncated`, `corrupt`, `not_an_image`, `empty`, `unsupported_format`, `too_many_pixels` or
            `out_of_memory`.
    """
    with _opened(data, max_pixels) as image, _room.taken(image.width * image.height):
        image_format, mode, is_animated = image.format or "", image.mode, _is_animated(image)
        image.load()
        _refuse_missing_palette(image)
        ImageOps.exif_transpose(image, in_place=True)
        return DecodedImage(image=_to_rgb(image), mode=mode, format=image_format, is_animated=is_animated)


def inspect_image(data: bytes | IO[bytes], max_pixels: int, depth: Depth = "full") -> InspectedImage:
    """What an image file holds, and whether `decode_image` can decode it.

    Args:
        data: as there.
        max_pixels: as there.
        depth: `full` decodes all of the file, a JPEG to an eighth of its size, for which all of its data is read as well;
            `header` does not see that a file is cut off or damaged behind its header.

    Raises:
        ImageError: as `decode_image`.
    """
    with _opened(data, max_pixels) as image:
        (width, height), mode, is_animated = image.size, image.mode, _is_animated(image)
        if depth == "full":
            with _room.taken(width * height):
                image.draft("L" if _has_whole_ratios(image) else None, (max(1, width // 8), max(1, height // 8)))
                image.load()
            _refuse_missing_palette(image)
        # A PNG file may tell its orientation behind its pixels, and would be decoded here.
        exif = image.getexif() if depth == "full" else Image.Image.getexif(image)
        if exif.get(_ORIENTATION) in _SWAPPING_ORIENTATIONS:
            width, height = height, width
        return InspectedImage(width=width, height=height, mode=mode, format=image.format or "", is_animated=is_animated)


@contextmanager
def _opened(data: bytes | IO[bytes], max_pixels: int) -> Iterator[Image.Image]:
    """An image of which the header has been read, and is such that it may be decoded; what goes wrong is an `ImageError`."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise _no_content()
    with _silent_pillow():
        try:
            with Image.open(file, formats=FORMATS) as image:
                _refuse_unfit(image, max_pixels)
                yield image
        except ImageError:
            raise
        except UnidentifiedImageError as cause:
            raise _not_identified(head) from cause
        except Image.DecompressionBombError as cause:
            message = f"the image has more than {MAX_PIXELS_LIMIT:,} pixels"
            raise ImageError("too_many_pixels", message, "scale the image down") from cause
        except MemoryError as cause:
            message = "decoding the image takes more memory than there is"
            raise ImageError("out_of_memory", message, "scale the image down, or raise the limit of memory") from cause
        except Exception as cause:  # on broken files Pillow's decoders raise nearly everything, from OSError to struct.error
            is_cut = _is_webp(head) and num_bytes < int.from_bytes(head[4:8], "little") + 8  # WebP tells its length
            raise _broken(cause, is_cut) from cause


def _refuse_unfit(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        message = f"{width} x {height} pixels are more than {max_pixels:,}"
        raise ImageError("too_many_pixels", message, "scale the image down, or raise max_pixels")
    if image.mode not in _EIGHT_BIT_MODES and not _has_sixteen_bits(image):
        message = f"pixels of mode {image.mode} have no agreed range"
        raise ImageError("unsupported_format", message, "save the image with 8 bits a channel")


def _has_whole_ratios(image: Image.Image) -> bool:
    """Whether a JPEG that is decoded in grey would be in colour: libjpeg enlarges channels by whole numbers alone."""
    layers = getattr(image, "layer", [])  # (id, horizontal and vertical samples, table) of each channel
    return all(max(layer[place] for layer in layers) % max(1, layer[place]) == 0 for layer in layers for place in (1, 2))


def _refuse_missing_palette(image: Image.Image) -> None:
    if image.mode in ("P", "PA") and image.palette is None:  # Pillow would take the numbers of colours for grey values
        raise ImageError("corrupt", "the image file has no palette for its colours", "replace the file")


def _is_animated(image: Image.Image) -> bool:
    # The further pictures of a camera's MPO are previews and depth maps, not frames.
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


class _Room:
    """Bounds the pixels that the threads of this process decode at a time; an image that is larger than all room goes alone."""

    def __init__(self, num_pixels: int) -> None:
        self._num_pixels = num_pixels
        self._num_taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, num_pixels: int) -> Iterator[None]:
        """Wait until there is room, and hold it as long as the block lasts."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_taken or self._num_taken + num_pixels <= self._num_pixels)
            self._num_taken += num_pixels
        try:
            yield
        finally:
            with self._changed:
                self._num_taken -= num_pixels
                self._changed.notify_all()


_room = _Room(128_000_000)


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Whether pixels are 0..65535. Mode `I` has 32 bits, of which PNG and PPM fill 16."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _to_rgb(image: Image.Image) -> Image.Image:
    if _has_sixteen_bits(image):
        return _scale_to_eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    over_white = Image.new("RGB", image.size, "white")
    over_white.paste(image, mask=image.getchannel("A"))
    return over_white


def _scale_to_eight_bits(image: Image.Image) -> Image.Image:
    """0..65535 to 0..255, rounded; Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.uint32)
    eight_bits = ((values + 128) // 257).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        eight_bits[values == transparent] = 255
    return Image.fromarray(eight_bits).convert("RGB")


def head_error(head: bytes) -> ImageError | None:
    """What is wrong with a file that begins like this; None where it may be an image that `decode_image` reads.

    Args:
        head: its first `HEAD_BYTES` bytes, or all of them.
    """
    if not head:
        return _no_content()
    Image.init()
    asked = (Image.OPEN[name][1] for name in FORMATS)  # by Pillow, before it opens a file
    is_accepted = any(accepts is not None and accepts(head[:16]) is True for accepts in asked)
    return None if is_accepted else _not_identified(head)


def _no_content() -> ImageError:
    return ImageError("empty", "the file has no content", "replace the file")


def _not_identified(head: bytes) -> ImageError:
    if _is_webp(head) or head.startswith(_SUPPORTED_SIGNATURES):
        return ImageError("corrupt", "the head of the image file is damaged", "replace the file")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return ImageError("not_an_image", "the file is an HTML page, not an image", f"give a {_FORMAT_LIST} file")
    if b"<svg" in start:
        name: str | None = "SVG"
    elif head[4:8] == b"ftyp":
        name = "HEIC, AVIF or video"
    else:
        name = next((name for signature, name in _UNSUPPORTED_SIGNATURES.items() if head.startswith(signature)), None)
    if name:
        return ImageError("unsupported_format", f"the file is {name}, which is not read", f"save it as {_FORMAT_LIST}")
    other = next((name for signature, name in _OTHER_SIGNATURES.items() if head.startswith(signature)), None)
    if other or head[257:262] == b"ustar":
        return ImageError("not_an_image", f"the file is {other or 'a tar archive'}", f"unpack it and give a {_FORMAT_LIST} file")
    return ImageError("not_an_image", "the file is not an image", f"give a {_FORMAT_LIST} file")


def _is_webp(head: bytes) -> bool:
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def _broken(cause: Exception, is_cut: bool) -> ImageError:
    reason = str(cause) or type(cause).__name__
    if is_cut or isinstance(cause, EOFError) or "truncated" in reason.lower():
        return ImageError("truncated", f"the end of the image file is missing ({reason})", "copy or fetch it again")
    return ImageError("corrupt", f"the image file is damaged ({reason})", "replace the file")


_silence_lock = threading.Lock()
_num_silent = 0
_silence = warnings.catch_warnings()


@contextmanager
def _silent_pillow() -> Iterator[None]:
    """Keep Pillow's warnings about odd metadata and large sizes from the terminal.

    The list of filters belongs to the process: the first thread that comes changes it, the last one that goes restores it.
    """
    global _num_silent, _silence
    with _silence_lock:
        if _num_silent == 0:
            _silence = warnings.catch_warnings()
            _silence.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _num_silent += 1
    try:
        yield
    finally:
        with _silence_lock:
            _num_silent -= 1
            if _num_silent == 0:
                _silence.__exit__(None, None, None)
