"""Shows what the frame will show of a picture, before anything is generated."""

import html
from collections.abc import Sequence

import ipywidgets as widgets
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from talkinghead_lab.errors import InvalidRequest, TalkingHeadError
from talkinghead_lab.figures.runs import CROP_COLOR, region_colors
from talkinghead_lab.media.frame_size import Box, fit_image
from talkinghead_lab.media.mask_files import Mask
from talkinghead_lab.params import GenerationParams
from talkinghead_lab.pipeline.portrait import FramedPicture, frame_picture
from talkinghead_lab.widgets.media_picker import jpeg_url

# Fields of the request that decide what the frame shows, or whether the model knows it.
FIELDS = (
    *("image_path", "crop", "pad", "frame_size", "resolution", "checkpoint"),
    *("background", "second_audio_path", "speaker_boxes", "speaker_masks"),
)
DRAWN_SIZE = (320, 320)  # pixels
OUTLINE = 5  # pixels across, of the filter that leaves the outline of a mask
DIMMED = 0.45  # brightness of what is cropped away


class FramePreview(widgets.HTML):  # type: ignore[misc]  # ipywidgets is untyped
    """The picture with the part that is kept, next to the frame.

    `warnings` are those of the picture, and `error` says why it cannot be used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_class("thl-frame-preview")
        self.warnings: tuple[str, ...] = ()
        self.error: TalkingHeadError | None = None
        self._shown: list[object] = []

    def show(self, params: GenerationParams) -> None:
        """Show a request's picture; nothing is read again unless a field changed that matters."""
        wanted = [getattr(params, name) for name in FIELDS]
        if wanted == self._shown:
            return
        self._shown, self.warnings, self.error = wanted, (), None
        try:
            picture = frame_picture(params)
            self.value, self.warnings = preview_html(picture, params.speaker_boxes or ()), picture.warnings
        except TalkingHeadError as error:
            self.value, self.error = "", error

    @property
    def invalid_field(self) -> str | None:
        """The field to change, if the picture cannot be used."""
        if self.error is None:
            return None
        return (self.error.field if isinstance(self.error, InvalidRequest) else None) or "image_path"


def preview_html(picture: FramedPicture, boxes: Sequence[Box]) -> str:
    """Two pictures with captions."""
    first = picture.reference.frame_at(0.0)
    marked = marked_picture(first, picture.placement.kept, boxes, picture.masks)
    shown = {
        "kept of {} × {}".format(*first.size): marked,
        "frame of {} × {}".format(*picture.frame_size): fit_image(first, picture.frame_size, picture.framing),
    }
    return "".join(
        f'<figure><img alt="{caption}" src="{jpeg_url(image)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, image in shown.items()
    )


def marked_picture(
    picture: Image.Image, kept: Box, boxes: Sequence[Box], masks: Sequence[Mask] = ()
) -> Image.Image:
    """A small picture in which the kept part and the speakers are outlined, and the rest is dark."""
    small = picture.copy()
    small.thumbnail(DRAWN_SIZE)
    scale = small.width / picture.width, small.height / picture.height
    dimmed = ImageEnhance.Brightness(small).enhance(DIMMED)
    inside = _scaled(kept, scale)
    dimmed.paste(small.crop(inside), inside)
    draw = ImageDraw.Draw(dimmed)
    for mask, color in zip(masks, region_colors(len(masks)), strict=True):
        drawn = Image.fromarray(mask).convert("L").resize(small.size)
        dimmed.paste(color, mask=ImageChops.subtract(drawn, drawn.filter(ImageFilter.MinFilter(OUTLINE))))
    for box, color in [(kept, CROP_COLOR), *zip(boxes, region_colors(len(boxes)), strict=True)]:
        left, top, right, bottom = _scaled(box, scale)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=3)
    return dimmed


def _scaled(box: Box, scale: tuple[float, float]) -> Box:
    left, top, right, bottom = (round(edge * scale[number % 2]) for number, edge in enumerate(box))
    return left, top, max(left + 1, right), max(top + 1, bottom)
