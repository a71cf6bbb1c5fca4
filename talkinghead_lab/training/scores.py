"""Scores against the renderer's ground truth: lip sync, identity, motion, seams and colour drift."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from talkinghead_lab.foundation.latent_grid import FRAMES_PER_SECOND
from talkinghead_lab.measures.frames import LumaChanges, seam_jump
from talkinghead_lab.media.colors import lab_from_rgb
from talkinghead_lab.models.judges.face_reader import HeadPose, read_faces
from talkinghead_lab.training.avatar import POSE_CHANNELS, Identity, Motion, render
from talkinghead_lab.training.face import EYE_LINE, FIT, MOUTH_LINE

LARGEST_LAG = 5
SETTLED = 38  # frame by which a requested head turn is complete
# Search range around each pose reading: degrees, half-pictures, scale factor.
POSE_SPREAD = (0.5, 0.6, 0.3, 0.004, 0.006, 0.008)


def correlations_at_lags(opening: Tensor, truth: Tensor) -> Tensor:
    """Pearson correlation [B, 11] of rows [B, F] at lags −5 … 5; positive means that the video is late."""
    frames, columns = opening.shape[1], []
    for lag in range(-LARGEST_LAG, LARGEST_LAG + 1):
        measured = opening[:, max(lag, 0) : frames + min(lag, 0)]
        true = truth[:, max(-lag, 0) : frames + min(-lag, 0)]
        measured, true = (x - x.mean(dim=1, keepdim=True) for x in (measured, true))
        scale = (measured.square().sum(1) * true.square().sum(1)).sqrt().clamp_min(1e-9)
        columns.append((measured * true).sum(1) / scale)
    return torch.stack(columns, dim=1)


def smooth(track: Tensor) -> Tensor:
    """Moving average over five frames, which removes most of the face reader's noise."""
    return torch.nn.functional.avg_pool1d(track[None, None], 5, 1, 2, count_include_pad=False)[0, 0]


def caption_is_obeyed(pose: HeadPose, action: str) -> bool:
    """Whether the pose follows a caption; thresholds are half of the smallest motion the renderer makes."""
    turn, nod, scale = smooth(pose.turn), smooth(pose.nod), smooth(pose.scale)
    late = slice(SETTLED, None)
    obeyed: Tensor = {
        "nodding": nod.std() > 2.1,
        "shaking": turn.std() > 3.2,
        "left": turn[late].mean() < -6,
        "right": turn[late].mean() > 6,
        "up": nod[late].mean() < -3.5,
        "leaning": scale[late].mean() - scale[0] > 0.045,
    }[action]
    return bool(obeyed)


def movement(pose: HeadPose) -> float:
    """Sum of the standard deviations of the three head angles over time, in degrees."""
    return sum(float(smooth(track).std()) for track in (pose.turn, pose.nod, pose.tilt))


def seam_jumps(videos: Tensor, first_chunk: int) -> list[float]:
    """The measure `seam_jump` of uint8 videos [B, F, 3, H, W] at the end of their first chunk."""
    jumps = []
    for video in videos.movedim(2, -1).cpu().numpy():
        changes = LumaChanges()
        for frame in video:
            changes.add(frame)
        jumps.append(seam_jump(changes.values, [first_chunk]).value)
    return [math.nan if jump is None else jump for jump in jumps]


def identity_psnr(
    videos: Tensor, identities: Sequence[Identity], moments: Sequence[int] = (40, 90, 140)
) -> Tensor:
    """PSNR [B] in dB outside eyes and mouth, against the presenter rendered in the best-fitting pose."""
    groups = [slice(start, start + 8) for start in range(0, len(videos), 8)]
    moments = [moment for moment in moments if moment < videos.shape[1]]
    scores = [
        torch.stack([_best_psnr(videos[group, m].float() / 127.5 - 1, identities[group]) for m in moments])
        for group in groups
    ]
    return torch.cat([score.mean(dim=0) for score in scores])


def _best_psnr(frames: Tensor, identities: Sequence[Identity], candidates: int = 48) -> Tensor:
    """PSNR [B] of frames [B, 3, H, W]; searches around the readings, since 0.1 pixel matters at edges."""
    reading = read_faces(frames)
    count, size = len(frames), frames.shape[-1]
    generator = torch.Generator(frames.device).manual_seed(0)
    pose, rows = reading[:, 1:], torch.arange(count, device=frames.device)
    mouth, face = (frames.new_zeros(count, candidates, 5) for _ in range(2))
    mouth[..., 0] = reading[:, :1].clamp(0, 1)
    for spread in (1.0, 0.5, 0.25):
        shape = (count, candidates, len(POSE_CHANNELS))
        noise = torch.randn(shape, generator=generator, device=frames.device)
        noise[:, 0] = 0
        poses = pose[:, None] + spread * noise * noise.new_tensor(POSE_SPREAD)
        rendered = render(list(identities), Motion(mouth, poses, face), size)
        kept = outside_eyes_and_mouth(poses.flatten(0, 1), size).view(count, candidates, size, size)
        error = ((rendered - frames[:, None]).square().mean(2) * kept).sum((2, 3)) / kept.sum((2, 3))
        best = error.argmin(dim=1)
        pose = poses[rows, best]
    return -10 * (error[rows, best] / 4).log10()


def outside_eyes_and_mouth(poses: Tensor, size: int) -> Tensor:
    """Mask [N, size, size]: 1 outside the boxes of eyes with brows and of the mouth, in each pose."""
    turn, nod, _, right, down, scale = poses.unbind(1)
    axis = (torch.arange(size, device=poses.device) + 0.5) / size * 2 - 1
    kept = torch.ones(len(poses), size, size, device=poses.device)
    for line, half_width, above, below in ((EYE_LINE, 0.36, 0.19, 0.14), (MOUTH_LINE, 0.27, 0.14, 0.20)):
        unit = (scale * FIT)[:, None]
        across = (axis - right[:, None]) / unit - 0.45 * torch.deg2rad(turn)[:, None].sin()
        along = (axis - down[:, None]) / unit - line - 0.45 * torch.deg2rad(nod)[:, None].sin()
        inside = (along > -above) & (along < below)
        kept = kept * ~(inside[:, :, None] & (across.abs() < half_width)[:, None, :])
    return kept


def background_drift(videos: Tensor) -> Tensor:
    """ΔE2000 between the mean colours of the top corners in the first and in the last second, [B]."""
    size = videos.shape[-1]
    corner = size // 10
    corners = torch.cat([videos[..., :corner, :corner], videos[..., :corner, -corner:]], dim=-1).float() / 255
    ends = corners[:, :FRAMES_PER_SECOND], corners[:, -FRAMES_PER_SECOND:]
    first, last = (lab_from_rgb(part.mean(dim=(1, 3, 4)).T).T for part in ends)
    return torch.stack([color_difference(a, b) for a, b in zip(first, last, strict=True)])


def color_difference(first: Tensor, second: Tensor) -> Tensor:
    """ΔE2000 of two colours in CIE Lab (CIE 142; Sharma, Wu and Dalal 2005)."""
    lightness, green_red, blue_yellow = torch.stack([first, second]).double().unbind(1)
    chroma = torch.hypot(green_red, blue_yellow).mean()
    gain = 0.5 * (1 - (chroma**7 / (chroma**7 + 25.0**7)).sqrt())
    green_red = green_red * (1 + gain)
    chromas = torch.hypot(green_red, blue_yellow)
    hues = torch.rad2deg(torch.atan2(blue_yellow, green_red)) % 360
    turn = (hues[1] - hues[0] + 180) % 360 - 180
    hue = (hues[0] + turn / 2) % 360
    mean_chroma, mean_lightness = chromas.mean(), lightness.mean()
    cosines = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    weight = 1 + sum(size * torch.deg2rad(n * hue + offset).cos() for size, n, offset in cosines)
    scale_lightness = 1 + 0.015 * (mean_lightness - 50) ** 2 / (20 + (mean_lightness - 50) ** 2).sqrt()
    scale_chroma, scale_hue = 1 + 0.045 * mean_chroma, 1 + 0.015 * mean_chroma * weight
    rotation = -2 * (mean_chroma**7 / (mean_chroma**7 + 25.0**7)).sqrt()
    rotation = rotation * torch.deg2rad(60 * torch.exp(-(((hue - 275) / 25) ** 2))).sin()
    by_lightness = (lightness[1] - lightness[0]) / scale_lightness
    by_chroma = (chromas[1] - chromas[0]) / scale_chroma
    by_hue = 2 * chromas.prod().sqrt() * torch.deg2rad(turn / 2).sin() / scale_hue
    total = by_lightness**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue
    return total.clamp_min(0).sqrt()
