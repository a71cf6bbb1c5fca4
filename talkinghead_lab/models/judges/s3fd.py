"""S3FD, the face detector of SyncNet's released evaluation (Zhang et al. 2017, arXiv 1708.05237).

Layers and names are those of the released `sfd_face.pth`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN = (123.0, 117.0, 104.0)  # of red, green and blue
STEPS = (4, 8, 16, 32, 64, 128)  # pixels between the anchors of each scale; an anchor is four times as large
VARIANCES = (0.1, 0.2)  # scales of the predicted shifts and sizes
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # of VGG16: channels, convolutions
NORMED = {2: "L2Norm3_3", 3: "L2Norm4_3", 4: "L2Norm5_3"}  # what follows a block on the way to its head
SCALES = {"L2Norm3_3": (256, 10.0), "L2Norm4_3": (512, 8.0), "L2Norm5_3": (512, 5.0)}
HEADS = (256, 512, 512, 1024, 512, 256)


class S3FD(nn.Module):
    """Finds faces of all sizes in a picture."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, count in BLOCKS:
            for _ in range(count):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=channels == 256))
        layers += [
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(),
        ]
        self.vgg = nn.ModuleList(layers)
        for name, (channels, scale) in SCALES.items():
            self.add_module(name, _Norm(channels, scale))
        self.extras = nn.ModuleList(
            [
                nn.Conv2d(1024, 256, 1),
                nn.Conv2d(256, 512, 3, 2, padding=1),
                nn.Conv2d(512, 128, 1),
                nn.Conv2d(128, 256, 3, 2, padding=1),
            ]
        )
        self.loc = nn.ModuleList([nn.Conv2d(channels, 4, 3, padding=1) for channels in HEADS])
        # The finest scale has three kinds of background.
        self.conf = nn.ModuleList(
            [nn.Conv2d(channels, 4 if i == 0 else 2, 3, padding=1) for i, channels in enumerate(HEADS)]
        )

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """A picture, [1, 3, H, W] from 0 to 255, RGB.

        Returns:
            Scores [P] from 0 to 1, and boxes [P, 4]: left, top, right and bottom as shares of the picture.
        """
        scores, boxes = [], []
        height, width = picture.shape[2:]
        for maps, loc, conf, step in zip(self._maps(picture), self.loc, self.conf, STEPS, strict=True):
            logits = conf(maps)
            background = logits[:, :-1].amax(1, keepdim=True)
            both = torch.cat([background, logits[:, -1:]], 1).softmax(1)
            scores.append(both[0, 1].flatten())
            shifts = loc(maps)[0].flatten(1).T
            boxes.append(_boxes(shifts, _anchors(maps.shape[2], maps.shape[3], step), height, width))
        return torch.cat(scores), torch.cat(boxes)

    def _maps(self, picture: Tensor) -> list[Tensor]:
        """What the heads look at, fine to coarse."""
        x = picture - picture.new_tensor(MEAN)[:, None, None]
        found, block = [], 0
        for layer in self.vgg:
            if isinstance(layer, nn.MaxPool2d):
                if block in NORMED:
                    found.append(self.get_submodule(NORMED[block])(x))
                block += 1
            x = layer(x)
        found.append(x)
        for number, layer in enumerate(self.extras):
            x = functional.relu(layer(x))
            if number % 2:
                found.append(x)
        return found


class _Norm(nn.Module):
    """Scales each place's features to length 1, then each channel by its weight."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[:, None, None] * x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _anchors(rows: int, columns: int, step: int) -> Tensor:
    """Centre and size of each anchor in pixels, [rows · columns, 4]: x, y, width, height."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    size = torch.full((rows * columns,), 4.0 * step)
    return torch.stack([x.flatten() * step, y.flatten() * step, size, size], 1)


def _boxes(shifts: Tensor, anchors: Tensor, height: int, width: int) -> Tensor:
    centre = anchors[:, :2] + shifts[:, :2] * VARIANCES[0] * anchors[:, 2:]
    half = anchors[:, 2:] * (shifts[:, 2:] * VARIANCES[1]).exp() / 2
    return torch.cat([centre - half, centre + half], 1) / shifts.new_tensor([width, height, width, height])
