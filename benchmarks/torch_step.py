"""A SimCLR step as a careful PyTorch user would write it: the peer that ``step.py`` starts.

channels_last, and autocast for bfloat16; a batch of uint8 crops on the device, then flip, colour
and blur in the step, the ResNet, a head of three layers, NT-Xent and LARS in ``foreach`` form. Prints one JSON line.
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F

LUMA = (0.2989, 0.587, 0.114)
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def conv_bn(channels: int, filters: int, kernel: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), *([nn.ReLU(inplace=True)] if relu else []))


class Block(nn.Module):
    """Residual block of two 3×3 convolutions, or a bottleneck."""

    def __init__(self, channels: int, filters: int, stride: int, bottleneck: bool):
        super().__init__()
        self.out_channels = 4 * filters if bottleneck else filters
        if bottleneck:
            convs = conv_bn(channels, filters, 1), conv_bn(filters, filters, 3, stride)
            convs += (conv_bn(filters, self.out_channels, 1, relu=False),)
        else:
            convs = conv_bn(channels, filters, 3, stride), conv_bn(filters, filters, 3, relu=False)
        self.convs = nn.Sequential(*convs)
        same = stride == 1 and channels == self.out_channels
        self.shortcut = nn.Identity() if same else conv_bn(channels, self.out_channels, 1, stride, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.convs(x).add_(self.shortcut(x)), inplace=True)


class Network(nn.Module):
    """ResNet and projection head."""

    def __init__(self, depth: int, small_images: bool, width: float = 1.0):
        super().__init__()
        base = channels = int(64 * width)
        stem = [conv_bn(3, base, 3)] if small_images else [conv_bn(3, base, 7, 2), nn.MaxPool2d(3, 2, 1)]
        blocks = []
        for group, count in enumerate(DEPTHS[depth]):
            for index in range(count):
                blocks.append(Block(channels, base << group, 2 if group and not index else 1, depth >= 50))
                channels = blocks[-1].out_channels
        self.encoder = nn.Sequential(*stem, *blocks)
        layers = []
        for width in (channels, channels, 128):
            layers += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean((2, 3)))


def nt_xent(hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """Computes NT-Xent; ``hidden`` has the first views, then the second ones."""
    rows = F.normalize(hidden.float(), dim=1)
    count = rows.shape[0]
    logits = rows @ rows.t() / temperature
    index = torch.arange(count, device=rows.device)
    logits = logits.masked_fill(index[:, None] == index[None, :], float("-inf"))
    return 2 * F.cross_entropy(logits, (index + count // 2) % count)


class LARS:
    """LARS with classic momentum; vectors are neither decayed nor adapted."""

    def __init__(self, parameters, rate: float = 0.3, momentum: float = 0.9, decay: float = 1e-6, trust: float = 1e-3):
        parameters = list(parameters)
        self.groups = [[p for p in parameters if (p.ndim > 1) == adapted] for adapted in (True, False)]
        self.velocities = [[torch.zeros_like(p) for p in group] for group in self.groups]
        self.rate, self.momentum, self.decay, self.trust = rate, momentum, decay, trust

    @torch.no_grad()
    def step(self) -> None:
        (weights, vectors), (moving, moving_vectors) = self.groups, self.velocities
        gradients = torch._foreach_add([p.grad for p in weights], weights, alpha=self.decay)
        weight_norms, norms = (torch.stack(torch._foreach_norm(group)) for group in (weights, gradients))
        trust = torch.where((weight_norms > 0) & (norms > 0), self.trust * weight_norms / norms, 1.0)
        torch._foreach_mul_(gradients, list((self.rate * trust).unbind()))
        for velocities, steps, group, scale in (
            (moving, gradients, weights, 1.0),
            (moving_vectors, [p.grad for p in vectors], vectors, self.rate),
        ):
            torch._foreach_mul_(velocities, self.momentum)
            torch._foreach_add_(velocities, steps, alpha=scale)
            torch._foreach_sub_(group, velocities)
        for group in self.groups:
            for parameter in group:
                parameter.grad = None


def augment(crops: torch.Tensor, strength: float, blur: bool) -> torch.Tensor:
    """Applies flip, color jitter, grayscale and blur to uint8 ``[n, 3, side, side]``, with draws per view."""
    count = crops.shape[0]
    draws = torch.rand(count, 9, device=crops.device)[..., None, None, None].unbind(1)
    x = crops.float() / 255
    x = torch.where(draws[8] < 0.5, x.flip(3), x)
    luma = torch.tensor(LUMA, device=x.device).view(3, 1, 1)

    def blend(image: torch.Tensor, base: torch.Tensor | float, draw: torch.Tensor) -> torch.Tensor:
        factor = 1 + 0.8 * strength * (2 * draw - 1)
        return (base + factor * (image - base)).clamp(0, 1)

    y = blend(x, 0.0, draws[1])
    y = blend(y, y.mean((2, 3), keepdim=True), draws[2])
    y = blend(y, (y * luma).sum(1, keepdim=True), draws[3])
    y = turn_hue(y, 0.4 * strength * (draws[4] - 0.5))
    x = torch.where(draws[0] < 0.8, y, x)
    x = torch.where(draws[5] < 0.2, (x * luma).sum(1, keepdim=True), x)
    if blur:
        x = gaussian_blur(x, 0.1 + 1.9 * draws[6].flatten(), draws[7].flatten() < 0.5)
    return x.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def turn_hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    safe = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = torch.where(value == red, (green - blue) / safe, sector) + 6 * turn.squeeze(1)
    near = [(number + sector) % 6 for number in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in near], 1)


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Blurs by two products with a banded matrix per view, which tensor cores compute."""
    side = x.shape[-1]
    radius = side // 20
    place = torch.arange(side, device=x.device)
    distance = (place[:, None] - place).abs()
    weight = torch.exp(-(distance**2) / (2 * sigma.view(-1, 1, 1) ** 2)) * (distance <= radius)
    weight = weight / weight[:, side // 2, :].sum(1).view(-1, 1, 1)
    weight = torch.where(chosen.view(-1, 1, 1), weight, torch.eye(side, device=x.device))
    dtype = torch.bfloat16 if x.is_cuda else torch.float32
    weight = weight.to(dtype)[:, None]
    return (weight @ x.to(dtype) @ weight.transpose(2, 3)).float()


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--depth", type=int, default=18)
    flags.add_argument("--image_size", type=int, default=32)
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--steps", type=int, default=4)
    flags.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    flags.add_argument("--augment", type=int, default=1, help="0: the crops as they are")
    flags.add_argument("--compiled", action="store_true")
    flags.add_argument("--threads", type=int, default=0)
    said = flags.parse_args()
    if said.threads:
        torch.set_num_threads(said.threads)
    gpu = said.device == "gpu"
    device = torch.device("cuda" if gpu else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    small = said.image_size <= 32
    network = Network(said.depth, small).to(device, memory_format=torch.channels_last).train()
    optimizer = LARS(network.parameters())
    shape = (2 * said.batch, said.image_size, said.image_size, 3)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)

    def loss_of(crops: torch.Tensor) -> torch.Tensor:
        views = augment(crops, strength=0.5 if small else 1.0, blur=not small) if said.augment else crops.float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=said.dtype == "bfloat16"):
            hidden = network(views)
        return nt_xent(hidden, 0.1)

    compute = torch.compile(loss_of, dynamic=False) if said.compiled else loss_of

    def run(steps: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = compute(crops)
            loss.backward()
            optimizer.step()
        loss.item()
        return time.perf_counter() - wall, time.process_time() - cpu

    first, _ = run(1)
    run(1)
    wall, cpu = run(said.steps)
    images = said.steps * said.batch
    name = f"torch {torch.__version__} " + ("compiled" if said.compiled else "eager")
    print(json.dumps({"name": name, "rate": images / wall, "per_cpu_second": images / cpu, "first_step": first}))


if __name__ == "__main__":
    main()
