"""Limits of a server, and the error for requests that exceed them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes and counts that keep a public server alive.

    Attributes:
        upload_bytes: largest image file.
        upload_bytes_together: image files that are being uploaded at the same time.
        upload_sec: duration of an upload.
        request_bytes: largest body of a request without an image.
        edit_bytes: largest body of a request with a mask.
        pixels: largest image, width times height.
        side: longest side of an image, pixels.
        aspect: longest side over shortest side.
        requests_per_client: concurrent requests of one address.
        page_requests_per_client: the same for the files of the page and its open connections.
        quick_waiting: queued clicks of all visitors.
        quick_per_client: of one address.
        slow_waiting: queued whole-image requests of all visitors.
        slow_per_client: of one address.
        boxes: objects of one request to the API.
        tiles: of one image.
        images: images kept in memory, of all visitors.
        images_per_client: of one address.
        image_idle_sec: an image without requests is forgotten after this time.
        record_bytes: masks kept for one image.
        feature_bytes: encoded images kept in memory.
        points: clicks on one object.
        names_length: characters of the list of names.
        names: number of names.
        download_pixels: masks times pixels of one answer of the API, and of a download that holds
            all masks in memory at once.
        download_pixels_in_turn: of a download whose masks are written one after another.
    """

    upload_bytes: int = 20 << 20
    upload_bytes_together: int = 96 << 20
    upload_sec: float = 60.0
    request_bytes: int = 64 << 10
    edit_bytes: int = 2 << 20
    pixels: int = 50_000_000
    side: int = 16_000
    aspect: float = 20.0
    requests_per_client: int = 8
    page_requests_per_client: int = 64
    quick_waiting: int = 32
    quick_per_client: int = 4
    slow_waiting: int = 8
    slow_per_client: int = 2
    images: int = 48
    images_per_client: int = 12
    image_idle_sec: float = 1800.0
    record_bytes: int = 4 << 20
    feature_bytes: int = 256 << 20
    points: int = 16
    boxes: int = 64
    tiles: int = 64
    names_length: int = 4000
    names: int = 200
    download_pixels: int = 600_000_000
    download_pixels_in_turn: int = 3_000_000_000

    @property
    def json_bytes(self) -> int:
        """Largest body of a request that holds an image as text: base64 adds a third."""
        return self.upload_bytes * 4 // 3 + self.request_bytes

    def most_masks(self, image_hw: tuple[int, int], *, is_in_turn: bool = False) -> int:
        """How many masks of an image of this height and width fit; at least 1.

        Args:
            image_hw: height and width, pixels.
            is_in_turn: whether `download_pixels_in_turn` applies, not `download_pixels`.
        """
        pixels = self.download_pixels_in_turn if is_in_turn else self.download_pixels
        return max(1, pixels // (image_hw[0] * image_hw[1]))


class HTTPError(Exception):
    """An error response with a message for the visitor.

    Args:
        status: HTTP status.
        message: for the visitor.
        is_gone: whether sending the image again would help.
        for_api: the same message for programs, which starts with the field that is wrong; None if
            both are the same.
    """

    def __init__(
        self, status: int, message: str, *, is_gone: bool = False, for_api: str | None = None
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.is_gone = is_gone
        self.for_api = for_api or message


def too_many_bytes(limits: Limits) -> str:
    """Message for a file that is too large."""
    return f"The file is larger than {limits.upload_bytes >> 20} MB. Use a smaller copy."
