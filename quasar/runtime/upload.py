"""Image files from anywhere: refused with a reason before anything large is decoded."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from hwmodel.errors import UsageError

_MAGIC = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
#: longer side over shorter: a resize to the network's size by the shorter side must not make the other one huge
LARGEST_ASPECT = 20


class ImageRefusedError(UsageError):
    """An image that cannot be used; `status` is the HTTP status that says whose fault it is and what kind."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """The image in a PNG or JPEG file, of mode L or RGB or with the channels that it has.

    The header alone is read until type and size are known to be fine. Palettes become RGB, and black and white L.

    Raises:
        ImageRefusedError: 415 for another type, 413 for more than `max_pixels`, 422 for a shape or a depth that no
            network takes, 400 for a damaged file.
    """
    kind = next((kind for kind, magic in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        raise ImageRefusedError(415, "the file is neither PNG nor JPEG")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(kind,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRefusedError(413, f"the image has more than {max_pixels:,} pixels") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise _damaged(kind, error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRefusedError(413, f"the image has {width} x {height} pixels; at most {max_pixels:,} are taken")
    if max(width, height) > LARGEST_ASPECT * min(width, height):
        raise ImageRefusedError(
            422, f"the image has {width} x {height} pixels; one side may be {LARGEST_ASPECT} times the other"
        )
    try:
        image.load()
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode == "1":
            image = image.convert("L")
    except Exception as error:  # whatever a decoder raises, the file is to blame
        raise _damaged(kind, error) from None
    if image.mode.startswith(("I", "F")):
        raise ImageRefusedError(422, f"the image has more than 8 bits a channel (mode {image.mode}); convert it to 8")
    return image


def _damaged(kind: str, error: Exception) -> ImageRefusedError:
    return ImageRefusedError(
        400, f"the {kind} file is damaged ({' '.join(str(error).split()) or type(error).__name__})"
    )
