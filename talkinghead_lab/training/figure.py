"""Drawing everything around the face: backdrop, hair, neck, shoulders and clothes."""

import torch
from torch import Tensor

from talkinghead_lab.training.face import FIT, TOP, HeadSpace, Numbers, head_distance, shadow_tone
from talkinghead_lab.training.shapes import (
    Canvas,
    box,
    bump,
    circle,
    convex,
    ellipse,
    segment,
    smooth_union,
    smoothstep,
    superellipse,
)


def draw_backdrop(canvas: Canvas, who: Numbers) -> None:
    """Draw a still room behind the presenter, lit from one side."""
    x, y = canvas.x, canvas.y
    base = who["backdrop_colour"]
    canvas.paint(torch.ones_like(x * y).expand(len(base), -1, -1), base)
    _draw_scenery(canvas, x, y, who)
    light = bump(torch.hypot(x + 0.6 * who["light_side"], y + 0.5) / 1.7)
    canvas.paint(light * 0.22, torch.ones_like(base))
    warm = 1 + who["light_warmth"].unsqueeze(1) * base.new_tensor([0.03, 0.0, -0.05]).view(1, 3, 1, 1)
    canvas.shade(smoothstep(0.5, 1.7, torch.hypot(x, y)).expand(len(base), -1, -1), 0.80 * warm)


def _draw_scenery(canvas: Canvas, x: Tensor, y: Tensor, who: Numbers) -> None:
    base = who["backdrop_colour"]
    pale, deep = base * 0.5 + 0.5, base * 0.82
    canvas.paint(canvas.inside(circle(x, y + 0.12, 0.80)) * who["backdrop.circle"], pale)
    canvas.paint(canvas.inside(box(x, y - 0.3, 0.72, 1.05, 0.70)) * who["backdrop.arch"], deep)
    frame = box(x - 0.62 * who["light_side"], y + 0.38, 0.30, 0.48, 0.03)
    canvas.paint(canvas.inside(frame) * who["backdrop.window"], base * 0.3 + 0.7)
    panes = torch.maximum(frame + 0.035, 0.015 - (x - 0.62 * who["light_side"]).abs())
    panes = torch.maximum(panes, 0.015 - (y + 0.36).abs())
    sky = base.new_tensor([0.66, 0.84, 0.95]).view(1, 3, 1, 1) + 0.12 * smoothstep(-0.9, 0.1, y).unsqueeze(1)
    canvas.paint(canvas.inside(panes) * who["backdrop.window"], sky.clamp_max(1))
    _draw_shelves(canvas, x, y, who)
    stand_x = x + 0.70 * who["light_side"]
    shade = torch.maximum((stand_x.abs() - 0.20 - 0.35 * (y + 0.42)) * 0.95, (y + 0.42).abs() - 0.16)
    canvas.paint(bump(torch.hypot(stand_x, y + 0.35) / 0.75) * who["backdrop.lamp"] * 0.5, pale)
    stand = segment(stand_x, y, (0.0, -0.3), (0.0, 1.2), 0.018)
    canvas.paint(canvas.inside(stand) * who["backdrop.lamp"], deep * 0.6)
    cream = base.new_tensor([1.0, 0.93, 0.74]).view(1, 3, 1, 1)
    canvas.paint(canvas.inside(shade - 0.01) * who["backdrop.lamp"], cream)


def _draw_shelves(canvas: Canvas, x: Tensor, y: Tensor, who: Numbers) -> None:
    if not who["backdrop.shelves"].any():
        return
    base = who["backdrop_colour"]
    row = torch.floor((y + 1.0) / 0.5)
    within = (y + 1.0) - row * 0.5
    slot = torch.floor((x + 1.0) / 0.125)
    # A hash of the book's position; equal on every device up to the accuracy of a sine.
    chance = torch.frac(torch.sin(slot * 12.9898 + row * 78.233 + base.sum(1) * 31.0) * 437.5).abs()
    height = 0.22 + 0.16 * chance
    book = torch.maximum((x + 1.0 - (slot + 0.5) * 0.125).abs() - 0.052, (0.44 - height) - within)
    book = torch.maximum(book, within - 0.44)
    hue = torch.stack([0.72 + 0.22 * torch.sin(chance * 40 + phase) for phase in (0.0, 1.2, 2.6)], 1)
    flag = who["backdrop.shelves"]
    canvas.paint(canvas.inside(book) * flag * (chance > 0.18), (base * hue).clamp(0, 1) * 0.9)
    canvas.paint(canvas.inside((within - 0.46).abs() - 0.022) * flag, base * 0.62)


def body_space(canvas: Canvas, motion: Numbers) -> tuple[Tensor, Tensor]:
    """Body coordinates; the shoulders move about a third as far as the head."""
    scale = FIT * (1 + 0.4 * (motion["scale"] - 1))
    return (canvas.x - 0.35 * motion["shift_x"]) / scale, (canvas.y - 0.35 * motion["shift_y"]) / scale


def draw_body(canvas: Canvas, space: HeadSpace, who: Numbers, motion: Numbers) -> None:
    """Draw neck and shoulders with the chin's shadow, then the clothes."""
    x, y = body_space(canvas, motion)
    torso = superellipse(x, y - 1.34, who["shoulders"], 0.68, 2.5)
    # The upper end of the neck moves with the head, the lower end with the shoulders.
    follow = smoothstep(0.75, 0.35, y)
    neck_x = torch.lerp(x, space.x, follow)
    flare = 0.55 * (y - 0.56).clamp_min(0) ** 1.5
    neck = torch.maximum(torch.maximum(neck_x.abs() - who["neck"] - flare, y - 0.95), 0.2 - y)
    skin = canvas.inside(smooth_union(neck, torso, 0.06))
    tone = shadow_tone(who)
    canvas.paint(skin, who["skin"] * 0.96)
    canvas.shade(skin * smoothstep(-0.05, 0.25, neck_x * who["light_side"]) * 0.5, tone)
    chin = head_distance(space, who, motion)
    canvas.shade(skin * smoothstep(0.17, 0.02, chin - 0.03 * who["light_side"] * x) * 0.80, tone * 0.92)
    _draw_clothes(canvas, x, y, torso, who)


def _draw_clothes(canvas: Canvas, x: Tensor, y: Tensor, torso: Tensor, who: Numbers) -> None:
    main, accent = who["clothes_colour"], who["accent_colour"]
    round_hole = ellipse(x, y - 0.63, who["neck"] + 0.085, 0.155 - 0.12 * who["clothes.turtleneck"])
    vee = torch.maximum((x.abs() * 1.6 + y - 1.13) * 0.53, x.abs() - who["neck"] - 0.075)
    vee_hole = torch.where(y < 0.66, x.abs() - who["neck"] - 0.075, vee)
    open_collar = who["clothes.vneck"] + who["clothes.suit"] + who["clothes.shirt"]
    hole = torch.where(open_collar > 0, vee_hole, round_hole)
    coverage = canvas.inside(torch.maximum(torso, -hole))
    if who["clothes.suit"].any() or who["clothes.shirt"].any():
        _draw_shirt(canvas, x, y, torso, who)
    jacket = torch.maximum(torso, 0.035 - vee_hole + 0.05 * smoothstep(0.9, 0.66, y))
    coverage = torch.where(
        who["clothes.suit"] > 0, canvas.inside(jacket), coverage * (1 - who["clothes.shirt"])
    )
    canvas.paint(coverage, main)
    stripes = smoothstep(-0.2, 0.2, torch.sin(y * 42.0 + 2.5 * x * x))
    canvas.paint(coverage * stripes * who["clothes.stripes"], accent)
    collared = who["clothes.tee"] + who["clothes.stripes"] + who["clothes.hoodie"] + who["clothes.vneck"]
    band = torch.maximum((hole - 0.022).abs() - 0.022, torso - 0.01)
    canvas.paint(canvas.inside(band) * collared, main * 0.82)
    canvas.paint(canvas.inside(band) * who["clothes.stripes"], accent)
    _draw_details(canvas, x, y, vee_hole, who)
    folds = bump((x.abs() - 0.52 - 0.15 * (y - 0.9)) / 0.05) * smoothstep(0.80, 1.0, y)
    canvas.shade(canvas.inside(torso) * folds * 0.35, 0.72)
    canvas.shade(canvas.inside(torso) * smoothstep(0.0, 0.8, x * who["light_side"]) * 0.5, 0.70)
    canvas.shade(canvas.inside(torso) * smoothstep(0.16, 0.0, -torso) * 0.18, 0.6)


def _draw_shirt(canvas: Canvas, x: Tensor, y: Tensor, torso: Tensor, who: Numbers) -> None:
    white = who["skin"].new_tensor([0.95, 0.95, 0.97]).view(1, 3, 1, 1).expand_as(who["skin"])
    colour = torch.where(who["clothes.shirt"].unsqueeze(1) > 0, who["clothes_colour"], white)
    worn = who["clothes.suit"] + who["clothes.shirt"]
    cloth = torch.maximum(torso, (0.97 - y - 1.5 * x.abs()) * 0.55)
    canvas.paint(canvas.inside(cloth) * worn, colour)
    placket = torch.maximum(torch.minimum((x - 0.035).abs() - 0.004, circle(x, y - 0.99, 0.012)), 0.95 - y)
    canvas.shade(canvas.inside(placket) * who["clothes.shirt"] * 0.5, white * 0.45)
    tie = torch.maximum(x.abs() - 0.030 - 0.12 * (y - 0.88).clamp_min(0), 0.88 - y)
    knot = superellipse(x, y - 0.89, 0.050, 0.045, 3.0)
    canvas.paint(canvas.inside(torch.minimum(tie, knot)) * who["clothes.suit"], who["accent_colour"])
    canvas.shade(canvas.inside((knot - 0.006).abs() - 0.008) * who["clothes.suit"] * 0.5, white * 0.5)
    neck = who["neck"]
    collar = convex(
        x.abs(),
        y,
        (neck - 0.03, 0.62),
        (neck + 0.085, 0.66),
        (neck + 0.045, 0.90),
        (0.13, 0.965),
        (0.0, 0.86),
    )
    canvas.shade(canvas.inside(collar - 0.012) * worn * 0.30, white * 0.6)
    canvas.paint(canvas.inside(collar + 0.004) * worn, colour * 0.85 + 0.14)


def _draw_details(canvas: Canvas, x: Tensor, y: Tensor, vee_hole: Tensor, who: Numbers) -> None:
    main, accent = who["clothes_colour"], who["accent_colour"]
    lapel = torch.maximum((vee_hole - 0.10 - 0.03 * torch.sin(y * 9)).abs() - 0.006, 0.74 - y)
    canvas.shade(canvas.inside(lapel) * who["clothes.suit"] * 0.8, 0.55)
    roll = box(x, y - 0.70 - 0.25 * x * x, who["neck"] + 0.030, 0.125, 0.05)
    worn = who["clothes.turtleneck"]
    canvas.shade(canvas.inside(roll - 0.02) * smoothstep(0.66, 0.78, y) * worn * 0.35, 0.6)
    canvas.paint(canvas.inside(roll) * worn, main)
    canvas.shade(canvas.inside(roll) * (0.5 + 0.5 * torch.sin(x * 90)) * worn * 0.18, 0.6)
    canvas.shade(canvas.inside(roll) * bump((y - 0.60 - 0.25 * x * x) / 0.10) * worn * 0.45, 0.55)
    cord = segment(x.abs(), y, (0.13, 0.80), (0.145, 0.97), 0.014)
    canvas.paint(canvas.inside(cord) * who["clothes.hoodie"], accent * 0.3 + 0.68)
    zipper = torch.maximum(x.abs() - 0.008, 0.83 - y)
    canvas.shade(canvas.inside(zipper) * who["clothes.hoodie"] * 0.8, 0.6)


def _curls(angle: Tensor, who: Numbers) -> Tensor:
    return who["hair.curl"] * (torch.sin(angle * 9 + 0.6) + 0.6 * torch.sin(angle * 16 + 1.7))


def _skull_angle(space: HeadSpace) -> Tensor:
    return torch.atan2(space.x, -(space.y + 0.08))


def back_hair_distance(space: HeadSpace, who: Numbers) -> Tensor:
    """Distance to the hair behind the head: the crown above, a curtain below."""
    length, spread = who["hair.length"], who["hair.spread"]
    down = smoothstep(0.0, 0.5, space.y)
    x = space.x + 0.04 * space.sin_turn + who["hair.wave"] * torch.sin(space.y * 9 + 1.0) * down
    crown = who["face_width"] + who["hair.volume_side"]
    width = crown + (spread - crown) * smoothstep(-0.10, 0.45, space.y)
    width = width * (1 - 0.16 * smoothstep(length - 0.35, length + 0.05, space.y))
    curtain = box(x * (spread / width), space.y - length + 0.75, spread, 0.75, 0.16)
    curtain = torch.maximum(curtain - _curls(_skull_angle(space), who), -0.10 - space.y)
    return torch.where(length > 0.05, curtain, torch.full_like(curtain, 1.0))


def draw_back_hair(canvas: Canvas, space: HeadSpace, who: Numbers, back: Tensor) -> None:
    """Draw the shaded hair behind the neck, and the bun."""
    x, y = space.x + 0.10 * space.sin_turn, space.y + TOP + 0.10 + 0.06 * space.sin_nod
    bun = circle(x, y, who["hair.bun"] + 1e-3)
    bun = torch.where(who["hair.bun"] > 0.01, bun, torch.full_like(bun, 1.0))
    colour = who["hair_colour"]
    canvas.paint(canvas.inside(back + 0.025), colour * 0.62)
    coverage = canvas.inside(bun)
    canvas.paint(coverage, colour)
    swirl = torch.sin(torch.atan2(y, x) * 2 + bun * 60)
    canvas.shade(coverage * smoothstep(-0.2, 1.0, swirl) * 0.25, 0.65)
    canvas.shade(coverage * smoothstep(-0.09, 0.0, bun) * 0.45, 0.55)
    glow = bump(torch.hypot(x + 0.06 * who["light_side"], y + 0.07) / 0.09)
    canvas.paint(coverage * glow * 0.3, colour * 0.5 + 0.5)


def hairline(space: HeadSpace, who: Numbers) -> Tensor:
    """Height of the hairline above each point of the face, in skin coordinates."""
    across = space.u / who["face_width"]
    offset = across - who["hair.part"]
    left, right = offset.clamp_max(0).neg(), offset.clamp_min(0)
    fall = who["hair.swoop_left"] * left**1.6 + who["hair.swoop_right"] * right**1.6
    edge = across.abs().clamp(0, 1.25)
    line = who["hair.line"] + fall
    line = line + (who["hair.side"] - line) * edge ** who["hair.corner"]
    scallop = who["hair.scallop"] * torch.sin(space.u * 38).abs()
    scallop = scallop + 0.5 * who["hair.curl"] * torch.sin(space.u * 26)
    return torch.minimum(line, who["hair.side"].clamp_min(0)) + scallop


def hair_distance(space: HeadSpace, who: Numbers, skull: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the silhouette and to the hairline; next to the skull, hair reaches down to `side`."""
    rise = who["hair.volume_top"] + who["hair.tuft"] * 0.10 * bump((space.x / 0.45) - 0.25)
    x, y = space.x, space.y + 0.06
    radius_y = torch.where(y < 0, TOP - 0.06 + rise, TOP + 0.25)
    outer = superellipse(x, y, who["face_width"] + who["hair.volume_side"], radius_y, 2.25)
    outer = outer - _curls(_skull_angle(space), who)
    near_skull = torch.maximum(-skull, space.y - who["hair.side"])
    return outer, torch.minimum((space.v - hairline(space, who)) * 0.8, near_skull)


def front_hair_distance(space: HeadSpace, who: Numbers, outer: Tensor, line: Tensor, back: Tensor) -> Tensor:
    """Distance to the hair in front of skull and shoulders, excluding the opening for the face."""
    long = who["hair.length"] > 0.05
    below = smoothstep(0.25, 0.95, space.y)
    inner = who["face_width"] * (0.93 - 0.10 * bump((space.y - 0.35) / 0.4)) + 0.02 * below
    opening = torch.maximum(-line, (space.x - 0.25 * space.sin_turn).abs() - inner)
    curtain = torch.maximum(torch.minimum(outer, back), -opening)
    curtain = torch.maximum(curtain, torch.where(long, -opening, line))
    return torch.where(long, curtain, torch.maximum(outer, line))


def draw_hair(
    canvas: Canvas, space: HeadSpace, who: Numbers, motion: Numbers, head: Tensor, back: Tensor
) -> None:
    """Draw the hair over the skull: shadow on the forehead, strands, and a sheen across the crown."""
    outer, line = hair_distance(space, who, head_distance(space, who, motion))
    worn = 1 - who["hair_style.bald"]
    colour = who["hair_colour"]
    hair = front_hair_distance(space, who, outer, line, back)
    canvas.shade(head * smoothstep(0.075, 0.0, hair) * 0.45 * worn, shadow_tone(who))
    coverage = canvas.inside(hair) * worn
    canvas.paint(coverage, colour)
    depth = (outer / 0.5).clamp(-1, 0)
    crown = torch.atan2(space.x - 0.3 * who["hair.part"], -(space.y + 0.02)) + 0.35 * depth
    hanging = smoothstep(-0.15, 0.25, space.y)
    flow = torch.lerp(crown, (space.x + 0.03 * torch.sin(space.y * 8)) * 1.6, hanging)
    strands = 0.6 * torch.sin(flow * 22) + 0.4 * torch.sin(flow * 53 + 1.3)
    canvas.shade(coverage * smoothstep(-0.3, 1.0, strands) * 0.22, 0.68)
    canvas.shade(coverage * smoothstep(-0.05, 0.0, hair) * 0.30, 0.62)
    canvas.shade(coverage * smoothstep(0.10, 0.65, space.x * who["light_side"]) * 0.40, 0.62)
    ring = bump((outer + 0.13 + 0.006 * strands) / 0.055) * bump((crown + 0.55 * who["light_side"]) / 0.85)
    canvas.paint(coverage * ring * 0.30, colour * 0.45 + 0.55)
    offset = space.u - who["hair.part"] * who["face_width"]
    parting = bump(offset / 0.022) * smoothstep(-0.30, -0.02, line) * (who["hair.swoop_left"] > 0.15)
    canvas.shade(coverage * parting * 0.45, 0.55)
