"""Pictures of a scene: anti-aliased shapes with textures, on a background, in front of a trembling camera."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from videolm.datasets.synthetic.scene import COLOURS, SIZES, TONES, Scene, Thing, pose

_MARGIN = 4
"""Pixels by which the trembling camera may leave the picture."""


def draw_frames(scene: Scene) -> UInt8[np.ndarray, "frames height width 3"]:
    """All frames of a scene, RGB. A reversed scene gives the same pictures in the other order, bit for bit."""
    rng = np.random.default_rng([scene.seed, 21])
    background = _background(scene, rng)
    shades = [_shade(thing.colour, rng) for thing in scene.things]
    offsets = _trembling(scene, rng)
    frames = np.empty((scene.num_frames, scene.height, scene.width, 3), dtype=np.uint8)
    for index in range(scene.num_frames):
        dx, dy = offsets[index]
        canvas = background[
            _MARGIN + dy : _MARGIN + dy + scene.height, _MARGIN + dx : _MARGIN + dx + scene.width
        ].copy()
        time = index / (scene.num_frames - 1)
        for thing, shade in zip(scene.things, shades, strict=True):
            _paint(canvas, thing, shade, time, offset=(-dx, -dy))
        frames[index] = np.rint(canvas).astype(np.uint8)
    return frames[::-1] if scene.backwards else frames


def _shade(colour: str, rng: np.random.Generator) -> Float32[np.ndarray, "3"]:
    return np.clip(np.array(COLOURS[colour]) + rng.uniform(-12, 12, 3), 0, 255).astype(np.float32)


def _trembling(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    if not scene.shake:
        return [(0, 0)] * scene.num_frames
    return [(int(dx), int(dy)) for dx, dy in rng.integers(-2, 3, size=(scene.num_frames, 2))]


def _background(scene: Scene, rng: np.random.Generator) -> Float32[np.ndarray, "height width 3"]:
    height, width = scene.height + 2 * _MARGIN, scene.width + 2 * _MARGIN
    tone = np.array(TONES[scene.tone], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period = float(rng.uniform(14, 26))
    angle = float(rng.uniform(0, math.pi))
    along = x * math.cos(angle) + y * math.sin(angle)
    if scene.pattern == "gradient":
        light = (along - along.min()) / (along.max() - along.min()) * 1.1 + 0.5
    elif scene.pattern == "striped":
        light = np.where(np.floor(along / period * 2) % 2 == 0, 0.85, 1.25)
    elif scene.pattern == "checkered":
        light = np.where((np.floor(x / period) + np.floor(y / period)) % 2 == 0, 0.82, 1.28)
    elif scene.pattern == "speckled":
        coarse = rng.uniform(0.7, 1.5, (height // 4 + 1, width // 4 + 1)).astype(np.float32)
        light = np.kron(coarse, np.ones((4, 4), np.float32))[:height, :width]
    else:
        light = np.ones_like(x)
    return np.asarray(np.clip(tone * light[..., None], 0, 255), dtype=np.float32)


def _paint(
    canvas: Float32[np.ndarray, "height width 3"],
    thing: Thing,
    shade: Float32[np.ndarray, "3"],
    time: float,
    *,
    offset: tuple[int, int],
) -> None:
    """Draws one thing into `canvas`, in place."""
    x, y, scale, angle, visible = pose(thing, time)
    if not visible:
        return
    height, width = canvas.shape[:2]
    side = min(height, width)
    radius = SIZES[thing.size] * scale * side
    centre_x = (width - side) / 2 + x * side + offset[0]
    centre_y = (height - side) / 2 + y * side + offset[1]
    left, right = max(int(centre_x - radius - 2), 0), min(int(centre_x + radius + 3), width)
    top, bottom = max(int(centre_y - radius - 2), 0), min(int(centre_y + radius + 3), height)
    if left >= right or top >= bottom:
        return
    grid_y, grid_x = np.mgrid[top:bottom, left:right].astype(np.float32)
    u, v = (grid_x - centre_x) / radius, (grid_y - centre_y) / radius
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = u * cos + v * sin, v * cos - u * sin
    alpha = np.clip(0.5 - _distance(thing.shape, u, v) * radius, 0, 1)
    colour = shade * _texture(thing.texture, u, v)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += (colour - patch) * alpha[..., None]


def _texture(texture: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.floating]:
    """Factor on the colour, in the thing's own coordinates, so that it turns and grows with it."""
    if texture == "striped":
        return np.where(np.floor((u + v) * 2.2) % 2 == 0, 1.0, 0.45)
    if texture == "dotted":
        cell_u, cell_v = (u * 1.6) % 1 - 0.5, (v * 1.6) % 1 - 0.5
        return np.where(cell_u**2 + cell_v**2 < 0.09, 0.4, 1.0)
    return np.ones_like(u)


def _distance(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.floating]:
    """Signed distance to the outline of a shape of radius 1, negative inside."""
    if shape == "circle":
        return np.hypot(u, v) - 0.92
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72) - 0.22
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8
    if shape == "cross":
        wide = np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.32)
        tall = np.maximum(np.abs(u) - 0.32, np.abs(v) - 0.95)
        return np.minimum(wide, tall)
    if shape == "triangle":
        return _polygon(u, v, _corners(3, 1.0))
    return _polygon(u, v, _corners(5, 1.0, inner=0.45))


def _corners(number: int, outer: float, inner: float | None = None) -> list[tuple[float, float]]:
    radii = [outer] if inner is None else [outer, inner]
    total = number * len(radii)
    turns = [2 * math.pi * k / total - math.pi / 2 for k in range(total)]
    return [
        (radii[k % len(radii)] * math.cos(t), radii[k % len(radii)] * math.sin(t))
        for k, t in enumerate(turns)
    ]


def _polygon(
    u: NDArray[np.float32], v: NDArray[np.float32], corners: list[tuple[float, float]]
) -> NDArray[np.floating]:
    """Signed distance to a polygon: distance to the nearest edge, sign by the even-odd rule."""
    distance = np.full_like(u, np.inf)
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, np.hypot(u - ax - along * ex, v - ay - along * ey))
        if ay != by:
            crosses = ((v < ay) != (v < by)) & (u < (bx - ax) * (v - ay) / (by - ay) + ax)
            inside ^= crosses
    return np.where(inside, -distance, distance)
