"""Scripted fakes: true clips with one thing wrong, in graded strength, each named with the oracle axis it must lower.

Some edit the scene before it is drawn, others the video after. Strength 0 changes nothing, strength 1 is the worst.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .camera import blurred
from .render import render
from .scene import BACKGROUND, RGB, SIDE, Scene, margin

SceneEdit = Callable[[Scene, Tensor, torch.Generator | None], Scene]
VideoEdit = Callable[[Tensor, Tensor, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class Fake:
    """One family: how it edits the scene or the video, the axis it lowers, and whether all training leaves it out."""

    axis: str
    scene: SceneEdit | None = None
    video: VideoEdit | None = None
    held_out: bool = False

    def __call__(self, scene: Scene, strength: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The faked clips [B, F, 3, SIDE, SIDE] of a true scene, each by its strength [B] in [0, 1]."""
        if strength.shape != scene.radius.shape[:1]:
            raise ValueError(f"strength must be [{len(scene.radius)}], one per clip, got {tuple(strength.shape)}")
        if ((strength < 0) | (strength > 1)).any():
            raise ValueError("strength must lie in [0, 1]")
        if self.scene:
            scene = self.scene(scene, strength, generator)
        video = render(scene)
        return self.video(video, strength, generator) if self.video else video


def _clock(frames: int, device: torch.device) -> Tensor:
    """0 at the first frame, 1 at the last: [1, F]."""
    return (torch.arange(frames, device=device) / max(1, frames - 1))[None]


def wide(strength: Tensor) -> Tensor:
    """[B] beside videos."""
    return strength[:, None, None, None, None]


def _draw(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator).to(like.device)


def _flicker(video: Tensor, strength: Tensor, generator: torch.Generator | None) -> Tensor:
    """Every frame has its own brightness."""
    gain = 1 + 0.35 * strength[:, None] * _draw(tuple(video.shape[:2]), generator, video).clamp(-2, 2)
    return (video * gain.clamp_min(0)[..., None, None, None]).clamp(0, 1)


def jitter(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """The object trembles about its path."""
    shake = 1.2 * strength[:, None, None] * _draw(tuple(scene.position.shape), generator, scene.position)
    return replace(scene, position=kept_in(scene.position + shake, scene.radius))


def ghosting(video: Tensor, strength: Tensor, generator: torch.Generator | None) -> Tensor:
    """What was shows through: every frame keeps a share of the (ghosted) frame before it."""
    frames = [video[:, 0]]
    share = 0.7 * strength[:, None, None, None]
    for now in video.unbind(1)[1:]:
        frames.append((1 - share) * now + share * frames[-1])
    return torch.stack(frames, 1)


def hue_drift(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """The object's colour turns to its neighbour among the world's colours."""
    palette = torch.tensor(RGB, device=scene.rgb.device)
    own = torch.cdist(scene.rgb, palette[None].expand(len(scene.rgb), -1, -1)).argmin(-1)
    share = (strength[:, None] * (0.25 + 0.75 * _clock(scene.rgb.shape[1], scene.rgb.device)))[..., None]
    return replace(scene, rgb=scene.rgb + share * (palette[(own + 1) % len(palette)] - scene.rgb))


def swap(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """From some frame on another object stands there: the stronger, the earlier."""
    late = _clock(scene.radius.shape[1], scene.radius.device) > 1 - 0.75 * strength[:, None]
    palette = torch.tensor(RGB, device=scene.rgb.device)
    other = torch.randint(1, len(RGB), (len(strength),), generator=generator).to(scene.rgb.device)
    own = torch.cdist(scene.rgb, palette[None].expand(len(scene.rgb), -1, -1)).argmin(-1)
    rgb = torch.where(late[..., None], palette[(own + other[:, None]) % len(palette)], scene.rgb)
    return replace(scene, rgb=rgb, shape=torch.where(late, (scene.shape + 1) % 4, scene.shape))


def teleport(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """At one moment the object jumps towards the far side: the stronger, the farther."""
    frames = scene.radius.shape[1]
    moment = 0.3 + 0.4 * torch.rand(len(strength), 1, generator=generator).to(strength.device)
    after = (_clock(frames, strength.device) > moment)[..., None]
    mirrored = SIDE - scene.position
    first = after.float().argmax(1, keepdim=True).expand(-1, 1, 2)
    away = mirrored.gather(1, first) - scene.position.gather(1, first)
    direction = torch.where(away.norm(dim=-1, keepdim=True) < 6, torch.full_like(away, 6.0), away)
    jump = strength[:, None, None] * direction * after
    return replace(scene, position=kept_in(scene.position + jump, scene.radius))


def frozen_tail(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """The object stops early: the stronger, the earlier."""
    clock = _clock(scene.radius.shape[1], strength.device)
    return replace(scene, position=at_time(scene, clock.minimum(1 - 0.85 * strength[:, None])))


def energy_gain(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """The object gathers speed along its path."""
    clock = _clock(scene.radius.shape[1], strength.device)
    return replace(scene, position=at_time(scene, clock ** (1 + 1.2 * strength[:, None])))


def growing_blur(video: Tensor, strength: Tensor, generator: torch.Generator | None) -> Tensor:
    """The picture goes out of focus."""
    sigma = 2.5 * strength[:, None] * (0.3 + 0.7 * _clock(video.shape[1], video.device))
    return torch.where(wide(strength) > 0, blurred(video, sigma), video)


def texture_noise(video: Tensor, strength: Tensor, generator: torch.Generator | None) -> Tensor:
    """A noisy texture lies over the picture, half of it still, half of it alive."""
    still = _draw((len(video), 1, *video.shape[2:]), generator, video)
    alive = _draw(tuple(video.shape), generator, video)
    return (video + 0.2 * wide(strength) * (still + alive) / 2**0.5).clamp(0, 1)


def shrink(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """The object loses size."""
    loss = 0.6 * strength[:, None] * _clock(scene.radius.shape[1], strength.device)
    return replace(scene, radius=scene.radius * (1 - loss))


def blank(scene: Scene, strength: Tensor, generator: torch.Generator | None) -> Scene:
    """The object is gone from some frame on: at strength 1 from the first."""
    gone = _clock(scene.radius.shape[1], strength.device) >= 1 - strength[:, None] + 1e-6 * (strength[:, None] == 0)
    return replace(scene, rgb=torch.where(gone[..., None], torch.full_like(scene.rgb, BACKGROUND), scene.rgb))


def kept_in(position: Tensor, radius: Tensor) -> Tensor:
    """Positions [B, F, 2], none closer to an edge than an object of radius [B, F] may come."""
    low = margin(radius)[..., None]
    return position.maximum(low).minimum(SIDE - low)


def at_time(scene: Scene, clock: Tensor) -> Tensor:
    """Positions [B, F, 2] of the scene's path at times [B, F] in [0, 1], between frames by straight lines."""
    last = scene.radius.shape[1] - 1
    moment = clock.clamp(0, 1) * last
    before = moment.floor().long().clamp_max(max(0, last - 1))
    after = (before + 1).clamp_max(last)
    share = (moment - before)[..., None]
    here = scene.position.gather(1, before[..., None].expand(-1, -1, 2))
    there = scene.position.gather(1, after[..., None].expand(-1, -1, 2))
    return here + share * (there - here)


FAKES = {
    "flicker": Fake("VQ", video=_flicker),
    "jitter": Fake("MQ", scene=jitter),
    "ghosting": Fake("VQ", video=ghosting, held_out=True),
    "hue_drift": Fake("TA", scene=hue_drift),
    "swap": Fake("TA", scene=swap),
    "teleport": Fake("physics", scene=teleport),
    "frozen_tail": Fake("MQ", scene=frozen_tail),
    "energy_gain": Fake("physics", scene=energy_gain, held_out=True),
    "growing_blur": Fake("VQ", video=growing_blur),
    "texture_noise": Fake("VQ", video=texture_noise),
    "shrink": Fake("physics", scene=shrink),
    "blank": Fake("physics", scene=blank),
}
