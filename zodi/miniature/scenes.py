"""The miniature's world: procedural street scenes with exact labels and depth, in six domains.

A scene is drawn far to near (painter's algorithm) into `Layers`: colour, label, depth, lights and upward-facing
surfaces. `zodi.miniature.weather` then turns the same layers into clear weather, night, fog, rain, snow or a game's
graphics, so the true target image of every scene is known, which no real data set can offer.

Distances are metres: X to the right, Y up, Z ahead of the camera.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from zodi.labels import CITYSCAPES
from zodi.miniature.weather import SHADERS, Layers, shade

PRETRAIN_SEEDS = range(0, 100_000)
TRAIN_SEEDS = range(100_000, 200_000)
TEST_SEEDS = range(200_000, 300_000)
FAR = 200.0
# Colours are drawn at twice the size and averaged, so that thin objects keep smooth edges at 96x192.
SUPERSAMPLING = 2

ID = {name: index for index, name in enumerate(CITYSCAPES.names)}
Color = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """One rendered scene: image uint8 (H, W, 3), label uint8 (H, W) train ids, depth float32 (H, W) in metres."""

    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class Camera:
    """Pinhole camera above a road that bends: `focal` and sizes in pixels, `height` in metres, `bend` in 1/m."""

    width: int
    height_px: int
    focal: float
    height: float
    horizon: float
    bend: float

    def project(self, x: float, y: float, z: float) -> Point:
        """Pixel (u, v) of the point (x, y, z), given relative to the bending road."""
        return (
            self.width / 2 + self.focal * (x + self.bend * z * z) / z,
            self.horizon + self.focal * (self.height - y) / z,
        )


class Canvas:
    """The layers as Pillow images; every shape is drawn into all, so that near objects hide far ones in each."""

    def __init__(self, camera: Camera) -> None:
        size = (camera.width, camera.height_px)
        self.camera = camera
        self.images = {name: Image.new("RGB", size) for name in ("albedo", "lights")}
        self.images |= {"label": Image.new("L", size, ID["sky"]), "up": Image.new("L", size)}
        self.images["depth"] = Image.new("F", size, FAR)
        self.draws = {name: ImageDraw.Draw(image) for name, image in self.images.items()}

    def polygon(
        self, points: list[Point], label: str, color: Color, z: float, light: Color = (0, 0, 0), up: int = 0
    ) -> None:
        """Fill a polygon of pixel points at distance `z`."""
        values = {"albedo": color, "lights": light, "label": ID[label], "up": up, "depth": z}
        rounded = [(round(u), round(v)) for u, v in points]
        for name, value in values.items():
            self.draws[name].polygon(rounded, fill=value)

    def ellipse(
        self, center: Point, radii: Point, label: str, color: Color, z: float, light: Color = (0, 0, 0), up: int = 0
    ) -> None:
        """Fill an ellipse given by centre and radii in pixels."""
        values = {"albedo": color, "lights": light, "label": ID[label], "up": up, "depth": z}
        (u, v), (ru, rv) = center, radii
        box = (round(u - ru), round(v - rv), round(u + ru), round(v + rv))
        for name, value in values.items():
            self.draws[name].ellipse(box, fill=value)

    def upright(
        self,
        x: float,
        y: float,
        z: float,
        width: float,
        height: float,
        label: str,
        color: Color,
        light: Color = (0, 0, 0),
        up: int = 0,
    ) -> None:
        """Fill an upright rectangle facing the camera: bottom centre (x, y, z), size in metres."""
        u0, v0 = self.camera.project(x - width / 2, y, z)
        u1, v1 = self.camera.project(x + width / 2, y + height, z)
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], label, color, z, light, up)

    def wall_quad(
        self,
        x: float,
        z: tuple[float, float],
        y: tuple[float, float],
        label: str,
        color: Color,
        light: Color = (0, 0, 0),
    ) -> None:
        """Fill a rectangle in the plane X = x, along the street."""
        corners = [(z[0], y[0]), (z[1], y[0]), (z[1], y[1]), (z[0], y[1])]
        points = [self.camera.project(x, yy, zz) for zz, yy in corners]
        self.polygon(points, label, color, sum(z) / 2, light)


def _tint(color: Color, factor: float) -> Color:
    return tuple(int(min(255, max(0, channel * factor))) for channel in color)


def _vary(rng: np.random.Generator, color: Color, amount: float = 18) -> Color:
    return tuple(int(v) for v in np.clip(np.asarray(color) + rng.normal(0, amount, 3), 0, 255))


def _pick(rng: np.random.Generator, items: list):
    return items[int(rng.integers(len(items)))]


CAR_COLORS = [
    (150, 30, 30),
    (40, 60, 130),
    (40, 40, 45),
    (200, 200, 205),
    (110, 112, 118),
    (30, 100, 70),
    (205, 165, 40),
]
FACADES = [(166, 150, 130), (150, 96, 76), (190, 180, 165), (130, 130, 135), (176, 140, 100), (120, 105, 95)]
CLOTHES = [(150, 40, 40), (40, 70, 130), (50, 50, 55), (60, 110, 70), (190, 170, 90), (120, 60, 120)]
LAMP_LIGHT, WINDOW_LIGHT, HEAD_LIGHT, TAIL_LIGHT = (255, 220, 150), (230, 180, 90), (255, 250, 225), (230, 30, 20)


def _ground(canvas: Canvas, rng: np.random.Generator, half_road: float, sidewalk: float) -> None:
    """Road, lane marks, sidewalks and terrain for every pixel below the horizon."""
    camera = canvas.camera
    v, u = np.mgrid[0 : camera.height_px, 0 : camera.width].astype(np.float32)
    below = v > camera.horizon + 0.5
    z = camera.focal * camera.height / np.maximum(v - camera.horizon, 0.5)
    x = (u - camera.width / 2) * z / camera.focal - camera.bend * z * z
    road = np.abs(x) < half_road
    walk = ~road & (np.abs(x) < half_road + sidewalk)
    terrain_is_paved = rng.random() < 0.3
    walk |= ~road & terrain_is_paved

    albedo = np.empty((camera.height_px, camera.width, 3), np.float32)
    albedo[:] = _vary(rng, (96, 120, 62))
    albedo[walk] = _vary(rng, (158, 150, 145), 10)
    albedo[road] = _vary(rng, (88, 88, 90), 8)
    kerb = np.abs(np.abs(x) - half_road) < 0.12
    albedo[kerb] = (178, 176, 172)
    center_line = (np.abs(x - rng.choice([0.0, -0.3 * half_road])) < 0.09) & ((z + rng.uniform(0, 6)) % 6 < 3)
    side_lines = np.abs(np.abs(x) - half_road + 0.5) < 0.06 if rng.random() < 0.5 else np.zeros_like(road)
    albedo[(center_line | side_lines) & road & (z < 60)] = (215, 215, 210)
    if rng.random() < 0.3:
        start = rng.uniform(6, 16)
        zebra = road & (z > start) & (z < start + 3) & (x % 1.1 < 0.55)
        albedo[zebra] = (210, 210, 208)

    label = np.where(road, ID["road"], np.where(walk, ID["sidewalk"], ID["terrain"])).astype(np.uint8)
    wheel_track = np.abs(np.abs(np.abs(x) - half_road / 2) - 0.75) < 0.35
    up = np.where(road & wheel_track, 110, np.where(road, 190, 255)).astype(np.uint8)
    for name, values in {"albedo": albedo.astype(np.uint8), "label": label, "up": up, "depth": z}.items():
        layer = np.array(canvas.images[name])
        layer[below] = values[below]
        canvas.images[name].paste(Image.fromarray(layer))


def _building(
    canvas: Canvas, rng: np.random.Generator, side: int, x: float, z0: float, z1: float, height: float
) -> None:
    """A house: facade along the street, front facing the camera, windows that may be lit at night."""
    color = _vary(rng, _pick(rng, FACADES), 10)
    near = max(z0, 1.2)
    if z0 > 1.2:
        canvas.upright(side * (x + 6), 0, z0, 12, height, "building", _tint(color, 0.8))
    canvas.wall_quad(side * x, (near, z1), (0, height), "building", color)
    storey, bay = rng.uniform(2.8, 3.4), rng.uniform(2.6, 4.0)
    glass = _vary(rng, (70, 82, 98), 10)
    lit_share = rng.uniform(0.05, 0.4)
    for row in range(int(height // storey)):
        for column in range(int((z1 - z0) // bay)):
            lit = rng.random() < lit_share
            wz = z0 + (column + 0.25) * bay
            if wz < near or wz > 60:
                continue
            light = WINDOW_LIGHT if lit else (0, 0, 0)
            wy = row * storey + 0.9
            canvas.wall_quad(side * x, (wz, wz + 0.5 * bay), (wy, wy + 1.5), "building", glass, light)


def _barrier(canvas: Canvas, rng: np.random.Generator, side: int, x: float, z0: float, z1: float) -> None:
    """A wall or a fence between two houses, or a hedge."""
    kind = _pick(rng, ["wall", "fence", "vegetation"])
    color = _vary(rng, {"wall": (140, 125, 115), "fence": (105, 85, 65), "vegetation": (55, 90, 40)}[kind], 10)
    height = rng.uniform(1.1, 2.2)
    near = max(z0, 1.2)
    canvas.wall_quad(side * x, (near, z1), (0, height), kind, color)
    if kind == "fence":
        for post in np.arange(near, min(z1, 40), 0.8):
            canvas.wall_quad(side * x, (post, post + 0.25), (0, height), kind, _tint(color, 1.35))


def _tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    height, crown = rng.uniform(3.5, 7.5), rng.uniform(1.2, 2.2)
    canvas.upright(x, 0, z, 0.3, height * 0.6, "vegetation", _vary(rng, (80, 62, 45), 8))
    green = _vary(rng, _pick(rng, [(62, 100, 42), (84, 116, 50), (128, 112, 48)]), 10)
    scale = canvas.camera.focal / z
    for index in range(7):
        dx, dy = rng.normal(0, 0.45, 2) * crown
        u, v = canvas.camera.project(x + dx, height - crown * 0.6 + dy, z)
        radius = crown * rng.uniform(0.45, 0.8) * scale
        shade = _tint(green, 0.75 + 0.07 * index)
        canvas.ellipse((u, v), (radius, radius * 0.85), "vegetation", shade, z, up=60 + 15 * index)


def _pole(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """A pole that carries a street lamp, a traffic light or a traffic sign."""
    grey = _vary(rng, (105, 108, 110), 8)
    kind = _pick(rng, ["lamp", "light", "sign", "sign"])
    side = -1 if x > 0 else 1
    if kind == "lamp":
        height = rng.uniform(5, 7)
        canvas.upright(x, 0, z, 0.16, height, "pole", grey)
        canvas.upright(x + side * 0.6, height - 0.15, z, 1.2, 0.15, "pole", grey)
        canvas.upright(x + side * 1.1, height - 0.3, z, 0.5, 0.18, "pole", (225, 225, 215), LAMP_LIGHT)
    elif kind == "light":
        canvas.upright(x, 0, z, 0.14, 3.6, "pole", grey)
        canvas.upright(x, 2.7, z, 0.5, 1.2, "traffic light", (35, 35, 35))
        active = int(rng.integers(3))
        for index, color in enumerate([(30, 220, 110), (250, 190, 40), (250, 40, 30)]):
            u, v = canvas.camera.project(x, 2.9 + 0.38 * index, z)
            radius = 0.16 * canvas.camera.focal / z
            shown, shine = (color, color) if index == active else (_tint(color, 0.25), (0, 0, 0))
            canvas.ellipse((u, v), (radius, radius), "traffic light", shown, z, shine)
    else:
        height = rng.uniform(2.2, 3.0)
        canvas.upright(x, 0, z, 0.1, height, "pole", grey)
        color = _pick(rng, [(195, 40, 40), (40, 80, 175), (225, 190, 50)])
        if rng.random() < 0.5:
            canvas.upright(x, height - 0.5, z, 0.9, 0.75, "traffic sign", color)
            canvas.upright(x, height - 0.3, z, 0.6, 0.25, "traffic sign", (235, 235, 230))
        else:
            u, v = canvas.camera.project(x, height, z)
            radius = 0.45 * canvas.camera.focal / z
            canvas.ellipse((u, v), (radius, radius), "traffic sign", color, z)
            canvas.ellipse((u, v), (radius * 0.6, radius * 0.6), "traffic sign", (235, 235, 230), z)


def _shadow(canvas: Canvas, x: float, z: float, width: float) -> None:
    """Darken the ground under an object without changing its label."""
    u, v = canvas.camera.project(x, 0, z)
    ru, rv = width / 2 * canvas.camera.focal / z, 0.12 * canvas.camera.focal / z
    canvas.draws["albedo"].ellipse((round(u - ru), round(v - rv), round(u + ru), round(v + rv)), fill=(45, 45, 48))


def _vehicle(canvas: Canvas, rng: np.random.Generator, kind: str, x: float, z: float, oncoming: bool) -> None:
    """A car, truck or bus as a box with cabin, wheels and lights; `z` is the distance of its near end."""
    width, height, length = {"car": (1.8, 1.5, 4.2), "truck": (2.4, 3.2, 7.0), "bus": (2.5, 3.0, 10.0)}[kind]
    color = _vary(rng, _pick(rng, CAR_COLORS), 8)
    side_color, glass = _tint(color, 0.72), (50, 58, 68)
    body = 0.95 if kind == "car" else height
    _shadow(canvas, x, z, width * 1.2)
    flank = x - np.sign(x + canvas.camera.bend * z * z) * width / 2
    canvas.wall_quad(flank, (z, z + length), (0.3, body), kind, side_color)
    if kind == "car":
        corners = [(z + 0.7, body), (z + length - 0.9, body), (z + length - 1.4, height), (z + 1.2, height)]
        points = [canvas.camera.project(flank, y, zz) for zz, y in corners]
        canvas.polygon(points, kind, _tint(glass, 0.9), z + length / 2)
    elif kind == "bus":
        canvas.wall_quad(flank, (z + 0.3, z + length - 0.3), (1.5, 2.5), kind, glass, WINDOW_LIGHT)
    for wheel in (z + 0.16 * length, z + 0.8 * length):
        u, v = canvas.camera.project(flank, 0.32, wheel)
        radius = 0.32 * canvas.camera.focal / wheel
        canvas.ellipse((u, v), (radius * 0.6, radius), kind, (25, 25, 27), wheel)

    canvas.upright(x, 0.25, z, width, body - 0.25, kind, color)
    for edge in (-1, 1):
        canvas.upright(x + edge * (width / 2 - 0.2), 0, z, 0.25, 0.3, kind, (25, 25, 27))
    if kind == "car":
        lower, upper = width * 0.46, width * 0.36
        corners = [(x - lower, body), (x + lower, body), (x + upper, height), (x - upper, height)]
        canvas.polygon([canvas.camera.project(cx, cy, z + 0.3) for cx, cy in corners], kind, color, z + 0.3)
        glass_corners = [(x - lower * 0.85, body + 0.05), (x + lower * 0.85, body + 0.05)]
        glass_corners += [(x + upper * 0.88, height - 0.12), (x - upper * 0.88, height - 0.12)]
        canvas.polygon([canvas.camera.project(cx, cy, z + 0.3) for cx, cy in glass_corners], kind, glass, z + 0.3)
        canvas.upright(x, height - 0.12, z + 0.3, upper * 1.9, 0.14, kind, color, up=255)
        canvas.upright(x, body - 0.12, z, width * 0.96, 0.12, kind, color, up=220)
    else:
        low, high = (1.4, 2.4) if kind == "bus" or oncoming else (0.9, 2.9)
        front = glass if kind == "bus" or oncoming else _tint(color, 0.9)
        canvas.upright(x, low, z, width * 0.88, high - low, kind, front)
        canvas.upright(x, height - 0.15, z, width, 0.2, kind, color, up=255)
    lamp, light = ((235, 232, 215), HEAD_LIGHT) if oncoming else ((165, 25, 25), TAIL_LIGHT)
    for edge in (-1, 1):
        canvas.upright(x + edge * (width / 2 - 0.25), 0.6, z, 0.36, 0.2, kind, lamp, light)
    canvas.upright(x, 0.42, z, 0.5, 0.13, kind, (215, 215, 205))


def _person(canvas: Canvas, rng: np.random.Generator, x: float, z: float, label: str = "person") -> None:
    top = 1.75 if label == "person" else 1.95
    lift = 0.0 if label == "person" else 0.55
    cloth, trousers = _vary(rng, _pick(rng, CLOTHES), 10), _vary(rng, (50, 52, 62), 8)
    if label == "person":
        canvas.upright(x - 0.12, 0, z, 0.18, 0.85, label, trousers)
        canvas.upright(x + 0.13, 0, z, 0.18, 0.85, label, _tint(trousers, 0.85))
    else:
        canvas.upright(x, lift, z, 0.36, 0.5, label, trousers)
    canvas.upright(x, top - 0.95, z, 0.52, 0.68, label, cloth)
    u, v = canvas.camera.project(x, top - 0.13, z)
    radius = 0.15 * canvas.camera.focal / z
    canvas.ellipse((u, v), (radius, radius * 1.15), label, _vary(rng, (185, 145, 120), 14), z, up=80)


def _two_wheeler(canvas: Canvas, rng: np.random.Generator, kind: str, x: float, z: float, ridden: bool) -> None:
    """A bicycle or motorcycle seen from the side, or from behind when someone rides it."""
    color = _vary(rng, _pick(rng, CAR_COLORS), 8)
    scale = canvas.camera.focal / z
    if ridden:
        canvas.upright(x, 0, z, 0.16 if kind == "bicycle" else 0.4, 0.95, kind, (30, 30, 32))
        canvas.upright(x, 0.85, z, 0.6, 0.1, kind, color)
        _person(canvas, rng, x, z, "rider")
        canvas.upright(x, 0.62, z, 0.12, 0.1, kind, (150, 30, 30), TAIL_LIGHT)
        return
    for wheel in (x - 0.5, x + 0.5):
        u, v = canvas.camera.project(wheel, 0.34, z)
        canvas.ellipse((u, v), (0.34 * scale, 0.34 * scale), kind, (35, 35, 38), z)
    canvas.upright(x, 0.38, z, 1.0, 0.22 if kind == "bicycle" else 0.45, kind, color)
    canvas.upright(x + 0.45, 0.5, z, 0.1, 0.55, kind, color)


def _skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Sky gradient and the distant end of the street."""
    camera = canvas.camera
    top, bottom = np.array(_vary(rng, (70, 125, 205), 12)), np.array(_vary(rng, (185, 210, 235), 8))
    blend = np.clip(np.arange(camera.height_px) / camera.horizon, 0, 1)[:, None, None]
    sky = (top + (bottom - top) * blend) * np.ones((1, camera.width, 1))
    canvas.images["albedo"].paste(Image.fromarray(sky.astype(np.uint8)))
    for _ in range(int(rng.integers(0, 4))):
        center = (rng.uniform(0, camera.width), rng.uniform(0, camera.horizon * 0.7))
        for _ in range(4):
            u, v = center[0] + rng.normal(0, 0.06) * camera.width, center[1] + rng.normal(0, 0.02) * camera.height_px
            ru, rv = rng.uniform(0.04, 0.1) * camera.width, rng.uniform(0.02, 0.04) * camera.height_px
            canvas.draws["albedo"].ellipse((u - ru, v - rv, u + ru, v + rv), fill=(228, 234, 240))
    for x in np.arange(-60, 60, 9.0):
        kind = _pick(rng, ["building", "vegetation", "vegetation"])
        color = _vary(rng, (150, 145, 140) if kind == "building" else (90, 112, 75), 8)
        canvas.upright(x - camera.bend * 8100, 0, 90, 9.5, rng.uniform(4, 14), kind, color)


def _street(canvas: Canvas, rng: np.random.Generator, half_road: float, sidewalk: float) -> None:
    """Everything that stands on the ground, drawn from far to near."""
    objects: list[tuple[float, object]] = []

    def place(z: float, draw, *args) -> None:
        objects.append((z, lambda generator: draw(canvas, generator, *args)))

    edge = half_road + sidewalk
    for side in (-1, 1):
        z = rng.uniform(-8, 2)
        setback = rng.uniform(0.2, 4.0)
        density = rng.uniform(0.35, 0.95)
        while z < 85:
            length = rng.uniform(7, 18)
            if z + length > 2.5:
                x = edge + setback + rng.uniform(0, 0.8)
                if rng.random() < density:
                    place(z + length, _building, side, x, z, z + length, rng.uniform(5, 16))
                elif rng.random() < 0.6:
                    place(z + length, _barrier, side, x, z, z + length)
            z += length
        for z in np.arange(rng.uniform(4, 12), 70, rng.uniform(7, 16)):
            if rng.random() < 0.6:
                place(z, _tree, side * (edge + rng.uniform(-0.4, 1.6)), z)
        for z in np.arange(rng.uniform(4, 12), 55, rng.uniform(8, 16)):
            if rng.random() < 0.75:
                place(z, _pole, side * (half_road + rng.uniform(0.3, 0.9)), z)
        for _ in range(int(rng.poisson(2.2))):
            z = rng.uniform(4, 32)
            place(z, _person, side * (half_road + rng.uniform(0.5, max(sidewalk, 1.0))), z)
        if rng.random() < 0.5:
            z = rng.uniform(4.5, 18)
            place(z, _two_wheeler, _pick(rng, ["bicycle", "bicycle", "motorcycle"]), side * (edge - 0.4), z, False)
        if rng.random() < 0.65:
            for z in np.arange(rng.uniform(3.5, 10), rng.uniform(14, 50), rng.uniform(5.5, 8)):
                if rng.random() < 0.8:
                    place(z, _vehicle, "car", side * (half_road - 1.1), z, side < 0)
    for _ in range(int(rng.integers(0, 4))):
        kind = _pick(rng, ["car", "car", "car", "car", "truck", "bus"])
        side, z = _pick(rng, [-1, 1]), rng.uniform(7 if kind == "car" else 12, 45)
        place(z, _vehicle, kind, side * half_road * 0.4, z, side < 0)
    for _ in range(int(rng.poisson(0.7))):
        z = rng.uniform(5, 25)
        kind = _pick(rng, ["bicycle", "bicycle", "motorcycle"])
        place(z, _two_wheeler, kind, _pick(rng, [-1, 1]) * (half_road - 2.6), z, True)
    if rng.random() < 0.2:
        z = rng.uniform(8, 22)
        place(z, _person, rng.uniform(-half_road, half_road), z)

    seeds = rng.integers(2**63, size=len(objects))
    for index in sorted(range(len(objects)), key=lambda i: -objects[i][0]):
        objects[index][1](np.random.default_rng(seeds[index]))


def build(seed: int, height: int = 96, width: int = 192) -> Layers:
    """The layers of scene number `seed`, the same on every call.

    Args:
        seed: scene number, >= 0; see `PRETRAIN_SEEDS`, `TRAIN_SEEDS`, `TEST_SEEDS`.
        height: rows, pixels, >= 16.
        width: columns, pixels, >= 16.

    Raises:
        ValueError: if the size or the seed is out of range.
    """
    if height < 16 or width < 16 or seed < 0:
        raise ValueError(f"scene: found seed {seed} and size {height}x{width}; expected seed >= 0 and sides >= 16")
    rng = np.random.default_rng(seed)
    s = SUPERSAMPLING
    camera = Camera(
        width=width * s,
        height_px=height * s,
        focal=width * s * rng.uniform(0.52, 0.62),
        height=rng.uniform(1.25, 1.9),
        horizon=height * s * rng.uniform(0.36, 0.48),
        bend=rng.normal(0, 0.0012),
    )
    canvas = Canvas(camera)
    half_road, sidewalk = rng.uniform(3.2, 5.6), rng.uniform(1.4, 3.2)
    _skyline(canvas, rng)
    _ground(canvas, rng, half_road, sidewalk)
    _street(canvas, rng, half_road, sidewalk)
    size = (width, height)
    averaged = {
        name: np.asarray(canvas.images[name].resize(size, Image.Resampling.BOX), np.float32) / 255
        for name in ("albedo", "lights", "up")
    }
    return Layers(
        label=np.ascontiguousarray(np.asarray(canvas.images["label"])[::s, ::s]),
        depth=np.ascontiguousarray(np.asarray(canvas.images["depth"])[::s, ::s]),
        horizon=camera.horizon / s,
        **averaged,
    )


def render(seed: int, domain: str = "clear", height: int = 96, width: int = 192) -> Scene:
    """Scene number `seed` in `domain`: the same street and the same label map in every domain."""
    layers = build(seed, height, width)
    return Scene(shade(layers, domain, seed), layers.label, layers.depth)


def render_many(seeds: Sequence[int], height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`render_domains` of every seed, in their order, on all cores, with a progress bar."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(partial(render_domains, height=height, width=width), seeds, chunksize=16)
        yield from tqdm(results, "render", len(seeds), unit="scene")


def render_domains(seed: int, height: int = 96, width: int = 192) -> tuple[np.ndarray, np.ndarray]:
    """Scene number `seed` in all domains: images uint8 (6, H, W, 3) in the order of `SHADERS`, labels uint8 (H, W)."""
    layers = build(seed, height, width)
    return np.stack([shade(layers, domain, seed) for domain in SHADERS]), layers.label
