"""Small ICC profiles (ICC.1:2001-04), made here: Pillow contains only sRGB's."""

import struct

import numpy as np
from PIL import Image, ImageCms

# XYZ of red, green and blue in D50, and gamma.
RGB_SPACES = {
    "Display P3": (((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), 2.2),
    "Adobe RGB": (((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)), 2.2),
    "gamma 1.8": (((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)), 1.8),
}
WHITE = (0.9642, 1.0, 0.8249)  # D50


def rgb_profile(name):
    primaries, gamma = RGB_SPACES[name]
    tags = {tag: _xyz(xyz) for tag, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(gamma))
    return _profile(b"RGB ", b"XYZ ", tags | {b"wtpt": _xyz(WHITE), b"desc": _description(name)})


def gray_profile(gamma):
    tags = {b"kTRC": _gamma(gamma), b"wtpt": _xyz(WHITE), b"desc": _description("grey")}
    return _profile(b"GRAY", b"XYZ ", tags)


def cmyk_profile(points=7):
    """Ink as in `to_inks`, whose colours are much darker than 1 - ink."""
    axis = np.linspace(0, 1, points)
    ink = np.stack(np.meshgrid(*[axis] * 4, indexing="ij"), axis=-1)
    colors = (255 * ((1 - ink[..., :3]) * (1 - ink[..., 3:])) ** (1 / INK_GAMMA)).round().astype(np.uint8)
    sheet = Image.fromarray(colors.reshape(-1, points**2, 3))
    lab = ImageCms.profileToProfile(
        sheet, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    colors = (np.asarray(lab) ^ np.array((0, 128, 128), np.uint8)).tobytes()  # Pillow's a and b are signed
    identity = struct.pack(">9i", *(np.eye(3, dtype=int) << 16).ravel())
    straight = bytes(range(256))
    header = b"mft1\0\0\0\0" + bytes((4, 3, points, 0)) + identity
    table = header + 4 * straight + colors + 3 * straight
    tags = {b"A2B0": table, b"wtpt": _xyz(WHITE), b"desc": _description("inks")}
    return _profile(b"CMYK", b"Lab ", tags, kind=b"prtr")


INK_GAMMA = 1.6


def to_inks(picture):
    """The picture in the inks of `cmyk_profile`, without black."""
    ink = 255 * (1 - (np.asarray(picture.convert("RGB")) / 255) ** INK_GAMMA)
    four = np.dstack([ink, np.zeros(ink.shape[:2])]).round().astype(np.uint8)
    return Image.frombytes("CMYK", picture.size, four.tobytes())


def _profile(space, connection, tags, kind=b"mntr"):
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">2I", offset + len(data), len(content))
        data += content
    size, version = offset + len(data), 0x02100000
    header = struct.pack(">I4sI4s4s4s12x4s", size, b"", version, kind, space, connection, b"acsp")
    header += bytes(28) + struct.pack(">3i", *(round(65536 * value) for value in WHITE))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _xyz(xyz):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in xyz))


def _gamma(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def _description(text):
    return b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text.encode() + bytes(1 + 4 + 4 + 2 + 1 + 67)
