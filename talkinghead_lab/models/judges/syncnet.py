"""SyncNet: measures lip sync by embedding face and sound in one space (Chung & Zisserman 2016).

Layers and names are those of the released `syncnet_v2.model`.
"""

from torch import Tensor, nn

WINDOW = 5  # video frames per embedding, 0.2 s
PICTURE_SIZE = 224
COEFFICIENTS = 13  # of the cepstrum, at 100 columns per second
COLUMNS = 4 * WINDOW
EMBEDDING = 1024


class SyncNet(nn.Module):
    """Embeds 0.2 s of a face and 0.2 s of sound; the embeddings are close if the two are in sync."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_block(nn.Conv2d(1, 64, 3, padding=1)),
            nn.MaxPool2d(1, 1),
            *_block(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, (1, 2)),
            *_block(nn.Conv2d(192, 384, 3, padding=1)),
            *_block(nn.Conv2d(384, 256, 3, padding=1)),
            *_block(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, 2),
            *_block(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netcnnlip = nn.Sequential(
            *_block(nn.Conv3d(3, 96, (WINDOW, 7, 7), (1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_block(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_block(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.netfcaud, self.netfclip = _readout(), _readout()

    def embed_sound(self, cepstrum: Tensor) -> Tensor:
        """Cepstral coefficients [N, 1, 13, 20] → [N, 1024]."""
        return self.netfcaud(self.netcnnaud(cepstrum).flatten(1))

    def embed_face(self, images: Tensor) -> Tensor:
        """Frames [N, 3, 5, 224, 224], BGR from 0 to 255 → [N, 1024]."""
        return self.netfclip(self.netcnnlip(images).flatten(1))


def _block(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _readout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))
