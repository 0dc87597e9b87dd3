"""Draw motion vectors as pictures of a clothed person: the ground truth that the frame generator learns from.

A batched rasterizer in torch, fast enough to draw during training. The body is made of rounded cones. Each is
projected to a cone on the screen. A pixel at distance d from its axis, where the cone's radius is r, sees the depth
z(t) - r sqrt(1 - d^2 / r^2). The nearest cone wins and is shaded by its sphere normal (Lambert). The floor
is a checker that moves with the person's place on it, darkened by the cones' shadows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .vocabulary import HIP_HEIGHT, JOINT_SCALE, JOINT_SLICE, LOOK_SLOTS, PRESENCE_SLICE, PROP_SLICE, slot_slices

PALETTE: dict[str, tuple[tuple[float, float, float], ...]] = {
    "shirt": (
        (0.84, 0.10, 0.10),
        (0.13, 0.30, 0.86),
        (0.10, 0.60, 0.20),
        (0.96, 0.82, 0.10),
        (0.95, 0.95, 0.95),
        (0.10, 0.10, 0.12),
        (0.54, 0.18, 0.70),
        (0.96, 0.50, 0.08),
    ),
    "trousers": (
        (0.09, 0.09, 0.11),
        (0.14, 0.22, 0.56),
        (0.52, 0.52, 0.54),
        (0.46, 0.28, 0.14),
        (0.92, 0.92, 0.90),
        (0.13, 0.42, 0.20),
    ),
    "skin": ((0.98, 0.80, 0.68), (0.84, 0.58, 0.38), (0.56, 0.34, 0.20), (0.29, 0.17, 0.11)),
    "hair": ((0.06, 0.05, 0.05), (0.40, 0.22, 0.10), (0.93, 0.76, 0.36), (0.66, 0.66, 0.67)),
    "background": ((0.62, 0.79, 0.96), (0.93, 0.93, 0.92), (0.56, 0.72, 0.54), (0.24, 0.26, 0.32), (0.90, 0.79, 0.66)),
}
SHOE, BASKETBALL, FOOTBALL, STEEL, GLOVE, SPONGE = (
    (0.15, 0.14, 0.15),
    (0.88, 0.42, 0.10),
    (0.97, 0.97, 0.99),
    (0.72, 0.76, 0.82),
    (0.78, 0.06, 0.10),
    (0.98, 0.88, 0.20),
)

# The camera follows the hip in x and z and looks down a little; the focal length is in half-images.
CAMERA_DISTANCE, CAMERA_HEIGHT, CAMERA_PITCH, CAMERA_FOCAL = 5.5, 1.55, math.radians(6.0), 4.6
LIGHT = (-0.4767, 0.6674, -0.5721)
SHADOW_SLANT = (0.35, 0.25)
FADED = 1e-4  # a cone thinner than this (a prop that is not there) is not drawn

# Points beyond the 20 joints, made in `body_points`.
FACE, CHIN, CROWN, NAPE, HAIR_TOP, HAIR_END, PROP_A, PROP_B, L_FIST, R_FIST = range(20, 30)
SHIRT_C, TROUSERS_C, SKIN_C, HAIR_C, SHOE_C, BASKETBALL_C, FOOTBALL_C, STEEL_C, GLOVE_C, SPONGE_C = range(10)


@dataclass(frozen=True)
class Cone:
    """A rounded cone from point `a` to `b`, radii in metres for a man and for a woman, and which colour it has."""

    a: int
    b: int
    man: tuple[float, float]
    woman: tuple[float, float]
    colour: int
    prop: int = -1  # its radii are scaled by this prop's presence


def _limb(a: int, b: int, radii: tuple[float, float], colour: int, slimmer: float = 0.9) -> Cone:
    return Cone(a, b, radii, (radii[0] * slimmer, radii[1] * slimmer), colour)


CONES = (
    Cone(0, 9, (0.125, 0.140), (0.125, 0.115), SHIRT_C),
    Cone(9, 10, (0.150, 0.075), (0.125, 0.065), SHIRT_C),
    _limb(12, 15, (0.070, 0.070), SHIRT_C),
    Cone(1, 5, (0.105, 0.105), (0.115, 0.115), TROUSERS_C),
    Cone(0, 0, (0.120, 0.120), (0.130, 0.130), TROUSERS_C),
    _limb(12, 13, (0.066, 0.054), SHIRT_C),
    _limb(15, 16, (0.066, 0.054), SHIRT_C),
    _limb(13, 14, (0.048, 0.040), SKIN_C),
    _limb(16, 17, (0.048, 0.040), SKIN_C),
    _limb(14, 18, (0.046, 0.050), SKIN_C),
    _limb(17, 19, (0.046, 0.050), SKIN_C),
    _limb(1, 2, (0.092, 0.070), TROUSERS_C),
    _limb(5, 6, (0.092, 0.070), TROUSERS_C),
    _limb(2, 3, (0.066, 0.050), TROUSERS_C),
    _limb(6, 7, (0.066, 0.050), TROUSERS_C),
    _limb(3, 4, (0.056, 0.046), SHOE_C),
    _limb(7, 8, (0.056, 0.046), SHOE_C),
    _limb(10, 11, (0.052, 0.052), SKIN_C),
    Cone(FACE, CHIN, (0.098, 0.108), (0.094, 0.104), SKIN_C),
    Cone(CROWN, NAPE, (0.112, 0.108), (0.112, 0.112), HAIR_C),
    Cone(HAIR_TOP, HAIR_END, (0.0, 0.0), (0.100, 0.075), HAIR_C),
    Cone(PROP_A, PROP_A, (0.125, 0.125), (0.125, 0.125), BASKETBALL_C, 0),
    Cone(PROP_A, PROP_A, (0.115, 0.115), (0.115, 0.115), FOOTBALL_C, 1),
    Cone(PROP_A, PROP_B, (0.026, 0.016), (0.026, 0.016), STEEL_C, 2),
    Cone(L_FIST, L_FIST, (0.098, 0.098), (0.098, 0.098), GLOVE_C, 3),
    Cone(R_FIST, R_FIST, (0.098, 0.098), (0.098, 0.098), GLOVE_C, 3),
    Cone(PROP_A, PROP_A, (0.080, 0.080), (0.080, 0.080), SPONGE_C, 4),
)


def project(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points (..., 3) before the camera -> u right and v down in [-1, 1], depth in metres, half-images a metre."""
    y, z = points[..., 1] - CAMERA_HEIGHT, points[..., 2] + CAMERA_DISTANCE
    cos, sin = math.cos(CAMERA_PITCH), math.sin(CAMERA_PITCH)
    depth = z * cos - y * sin
    scale = CAMERA_FOCAL / depth
    return points[..., 0] * scale, -(y * cos + z * sin) * scale, depth, scale


def body_points(motion: torch.Tensor) -> torch.Tensor:
    """Motion vectors (n, 75) -> the points of the cones (n, 30, 3) in metres, hip at x = z = 0."""
    lift = motion.new_tensor([0.0, HIP_HEIGHT, 0.0])
    joints = motion[:, JOINT_SLICE].reshape(-1, 20, 3) / JOINT_SCALE + lift
    prop = motion[:, PROP_SLICE].reshape(-1, 2, 3) / JOINT_SCALE + lift
    head = joints[:, 11]
    up = F.normalize(head - joints[:, 10], dim=-1)
    left = F.normalize(joints[:, 12] - joints[:, 15], dim=-1)
    front = torch.linalg.cross(left, up, dim=-1)
    made = [
        head + up * 0.055 + front * 0.025,
        head + up * 0.125 + front * 0.02,  # face, chin
        head + up * 0.085 - front * 0.03,
        head + up * 0.15 - front * 0.014,  # crown, nape
        head + up * 0.06 - front * 0.05,
        joints[:, 10] - up * 0.10 - front * 0.115,  # long hair
        prop[:, 0],
        prop[:, 1],
        joints[:, 14] * 0.25 + joints[:, 18] * 0.75,
        joints[:, 17] * 0.25 + joints[:, 19] * 0.75,
    ]
    return torch.cat([joints, torch.stack(made, 1)], 1)


def colours(look: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Looks (n, 29), weights in [0, 1] -> the cones' colours (n, cones, 3) and the background's (n, 3)."""
    slices = slot_slices(LOOK_SLOTS)
    worn = {slot: look[:, slices[slot]] @ look.new_tensor(PALETTE[slot]) for slot in PALETTE}
    fixed = look.new_tensor([SHOE, BASKETBALL, FOOTBALL, STEEL, GLOVE, SPONGE]).expand(len(look), -1, -1)
    table = torch.cat([torch.stack([worn[s] for s in ("shirt", "trousers", "skin", "hair")], 1), fixed], 1)
    return table[:, [cone.colour for cone in CONES]], worn["background"]


def cones(motion: torch.Tensor, look: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The cones' ends (n, cones, 3) and radii (n, cones), in metres."""
    points = body_points(motion)
    woman = look[:, slot_slices(LOOK_SLOTS)["build"]][:, 1:2]
    present = torch.cat([motion.new_ones(len(motion), 1), motion[:, PRESENCE_SLICE].clamp(0, 1)], 1)
    present = present[:, [cone.prop + 1 for cone in CONES]]
    radii = []
    for end in (0, 1):
        man = motion.new_tensor([cone.man[end] for cone in CONES])
        her = motion.new_tensor([cone.woman[end] for cone in CONES])
        radii.append((man + woman * (her - man)) * present)
    return points[:, [c.a for c in CONES]], points[:, [c.b for c in CONES]], radii[0], radii[1]


def rasterize(
    au: torch.Tensor,
    av: torch.Tensor,
    az: torch.Tensor,
    ar: torch.Tensor,
    bu: torch.Tensor,
    bv: torch.Tensor,
    bz: torch.Tensor,
    br: torch.Tensor,
    thickness: torch.Tensor,
    sax: torch.Tensor,
    saz: torch.Tensor,
    sar: torch.Tensor,
    sbx: torch.Tensor,
    sbz: torch.Tensor,
    sbr: torch.Tensor,
    colour: torch.Tensor,
    background: torch.Tensor,
    phase: torch.Tensor,
    pixels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of screen cones (n, cones), their shadows' cones and the floor; one fused kernel when compiled.

    `phase` (n, 4) is the floor slice of the motion vector. Returns images (n, 3, pixels, pixels) in [0, 1] and the
    person's mask (n, 1, pixels, pixels).
    """
    grid = (torch.arange(pixels, device=au.device, dtype=torch.float32) + 0.5) / pixels * 2 - 1
    px, py = grid[None, None, None, :], grid[None, None, :, None]

    def each(value: torch.Tensor) -> torch.Tensor:
        return value[:, :, None, None]

    du, dv = bu - au, bv - av
    length2 = (du * du + dv * dv).clamp(min=1e-6)
    t = ((px - each(au)) * each(du / length2) + (py - each(av)) * each(dv / length2)).clamp(0, 1)
    radius = each(ar) + t * each(br - ar)
    distance2 = (px - each(au) - t * each(du)).square() + (py - each(av) - t * each(dv)).square()
    inside = 1 - distance2 / (radius * radius).clamp(min=1e-8)
    depth = each(az) + t * each(bz - az) - each(thickness) * inside.clamp(min=0).sqrt()
    depth = torch.where((inside > 0) & (radius > FADED), depth, 1e4)
    nearest, winner = depth.min(1)

    flat = winner.flatten(1)

    def of_winner(value: torch.Tensor) -> torch.Tensor:
        return value.gather(1, flat).view_as(nearest)

    px, py = px[:, 0], py[:, 0]
    wu, wv, wdu, wdv, wr = of_winner(au), of_winner(av), of_winner(du), of_winner(dv), of_winner(ar)
    t = ((px - wu) * wdu / of_winner(length2) + (py - wv) * wdv / of_winner(length2)).clamp(0, 1)
    radius = (wr + t * of_winner(br - ar)).clamp(min=FADED)
    nx, ny = (px - wu - t * wdu) / radius, (py - wv - t * wdv) / radius
    nz = (1 - nx * nx - ny * ny).clamp(min=0).sqrt()
    lambert = (nx * LIGHT[0] - ny * LIGHT[1] - nz * LIGHT[2]).clamp(min=0)
    shade = (0.5 + 0.55 * lambert)[:, None]
    person = torch.stack([of_winner(colour[:, :, k]) for k in range(3)], 1) * shade

    cos, sin = math.cos(CAMERA_PITCH), math.sin(CAMERA_PITCH)
    ray_y, ray_z = -py / CAMERA_FOCAL * cos - sin, -py / CAMERA_FOCAL * sin + cos
    reach = CAMERA_HEIGHT / (-ray_y).clamp(min=1e-3)
    fx, fz = px / CAMERA_FOCAL * reach, (ray_z * reach - CAMERA_DISTANCE).expand(1, pixels, pixels)
    on_floor = (ray_y < -1e-3) & (fz < 8)
    sdx, sdz = sbx - sax, sbz - saz
    length2 = (sdx * sdx + sdz * sdz).clamp(min=1e-6)
    t = ((fx[:, None] - each(sax)) * each(sdx / length2) + (fz[:, None] - each(saz)) * each(sdz / length2)).clamp(0, 1)
    gap = (
        (fx[:, None] - each(sax) - t * each(sdx)).square() + (fz[:, None] - each(saz) - t * each(sdz)).square()
    ).sqrt()
    gap = torch.where(each(torch.maximum(sar, sbr)) > FADED, gap - each(sar) - t * each(sbr - sar), 9.0).amin(1)
    shadow = 1 - 0.45 * (1 - (gap / 0.06 + 0.5).clamp(0, 1))
    wave = [
        torch.sin(math.pi * f) * phase[:, k + 2, None, None] + torch.cos(math.pi * f) * phase[:, k, None, None]
        for k, f in enumerate((fx, fz))
    ]  # sin(pi (f + place)), from the place's sine and cosine
    tile = (wave[0] * wave[1] * 12).clamp(-1, 1) * torch.exp(-fz.clamp(min=-2) * 0.35 - 0.5)
    back = background[:, :, None, None]
    floor = (back * 0.72 + 0.05) * (1 + 0.10 * tile[:, None]) * shadow[:, None]
    image = torch.where(on_floor[:, None], floor, back)
    seen = (nearest < 1e3)[:, None]
    return torch.where(seen, person, image).clamp(0, 1), seen.float()


def draw(
    motion: torch.Tensor,
    look: torch.Tensor,
    size: int = 256,
    supersample: int = 2,
    rasterizer=rasterize,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw motion vectors (n, 75) with looks (n, 29).

    Looks are weights in [0, 1] that sum to 1 in every slot; a mixture mixes the colours. Returns images
    (n, 3, size, size) in [0, 1] and the person's coverage (n, 1, size, size). Pass a compiled `rasterizer` where many
    batches of one shape are drawn.
    """
    a, b, ra, rb = cones(motion, look)
    au, av, az, ak = project(a)
    bu, bv, bz, bk = project(b)
    colour, background = colours(look)
    sx, sz = SHADOW_SLANT
    image, mask = rasterizer(
        au,
        av,
        az,
        ra * ak,
        bu,
        bv,
        bz,
        rb * bk,
        torch.maximum(ra, rb),
        a[..., 0] + sx * a[..., 1],
        a[..., 2] + sz * a[..., 1],
        ra,
        b[..., 0] + sx * b[..., 1],
        b[..., 2] + sz * b[..., 1],
        rb,
        colour,
        background,
        motion[:, 60:64],
        size * supersample,
    )
    if supersample > 1:
        image, mask = F.avg_pool2d(image, supersample), F.avg_pool2d(mask, supersample)
    return image, mask


def random_looks(
    count: int, generator: torch.Generator | None = None, device="cpu", mixed: float = 0.0
) -> torch.Tensor:
    """Looks (count, 29): every slot one value drawn uniformly; a share `mixed` of them blends two such looks."""

    def one() -> torch.Tensor:
        parts = []
        for slot in LOOK_SLOTS:
            values = slot_slices(LOOK_SLOTS)[slot]
            size = values.stop - values.start
            parts.append(F.one_hot(torch.randint(0, size, (count,), generator=generator, device=device), size).float())
        return torch.cat(parts, 1)

    look = one()
    if mixed:
        weight = torch.rand(count, 1, generator=generator, device=device)
        blend = torch.rand(count, 1, generator=generator, device=device) < mixed
        look = torch.where(blend, weight * look + (1 - weight) * one(), look)
    return look
