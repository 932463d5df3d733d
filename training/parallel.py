"""Several processes on one run: each takes its share of a step's rows, gradients add up, rank 0 alone writes.

Every rank makes the whole step's rows from (seed, step), so it knows what all ranks count: losses are sums over a
rank's rows divided by the learned tokens of ALL rows. Eight rows at once, one after the other or on two ranks then give
the same gradient. DDP holds the whole model on each rank; FSDP2 (`fully_shard`) spreads weights, gradients and AdamW's
state over the ranks, for sizes that do not fit otherwise. In one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Weights, gradients and AdamW's two averages are 16 bytes a parameter; above this share of a GPU they are spread.
SHARD_ABOVE = 0.5


def start() -> None:
    """Join the other processes that torchrun started; blocks until all have come. Without torchrun: nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def lost(error: BaseException) -> bool:
    """Whether it only says that another rank has gone: that one's own error is the one to tell."""
    return size() > 1 and isinstance(error, RuntimeError) and any(w in str(error) for w in ("gloo", "NCCL", "closed"))


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Rank 0 goes through the block alone, then the others: what it wrote to disk they find there."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and rank() == 0:
        dist.barrier()


def agree(wish: bool) -> bool:
    """True on all ranks as soon as it is on one: SIGTERM reaches them at different steps."""
    if size() == 1:
        return wish
    flag = torch.tensor(int(wish))  # on the CPU: gloo's, and no wait for a GPU
    dist.all_reduce(flag)
    return bool(flag)


def total(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    if size() > 1:
        dist.all_reduce(value)
    return value


def totals(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's sum over all ranks, in float64."""
    return dict(zip(figures, total(torch.tensor([*figures.values()], dtype=torch.float64)).tolist(), strict=True))


def gather(own: Sequence[Any]) -> list[Any]:
    """What the ranks did of their shares, one after the other, on every rank; items of plain Python values."""
    parts: list[Any] = [own]
    if size() > 1:
        parts = [None] * size()
        dist.all_gather_object(parts, list(own))
    return [item for part in parts for item in part]


def share(rows: int) -> slice:
    """This rank's part of a step's rows; the first ranks take one more where they do not divide."""
    each, over = divmod(rows, size())
    begin = rank() * each + min(rank(), over)
    return slice(begin, begin + each + (rank() < over))


def mine(targets: Tensor, *others: Tensor | None) -> list[Any]:
    """This rank's rows of each tensor; a rank without any gets one whose targets are all -1, which teaches nothing."""
    here = share(len(targets))
    if here.start < here.stop:
        return [None if t is None else t[here] for t in (targets, *others)]
    return [torch.full_like(targets[:1], -1), *(None if t is None else t[:1] for t in others)]


def seed(one: int) -> int:
    """A step's seed on this rank: equal masks of dropout on different rows would be no chance."""
    return (one + rank() * 0x9E3779B97F4A7C15) % 2**63


def whole(value: Tensor) -> Tensor:
    """A tensor that FSDP spread over the ranks, put together; any other as it is. All ranks must ask."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def spread(value: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`: this rank's part of `value`, laid out as `like` is."""
    if not hasattr(like, "full_tensor") or not value.ndim:
        return value.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Whole weights into a model that may be spread over the ranks."""
    own = model.state_dict()
    model.load_state_dict({name: spread(tensor, own[name]) for name, tensor in tensors.items()})


class Together(nn.Module):
    """loss(*args) = function(model, *args) on this rank's rows; after `backward` the gradients are sums over all ranks.

    Make it before the optimizer: FSDP replaces the model's parameters.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Any], sharded: str = "off") -> None:
        super().__init__()
        self.inner, self.function = _Call(model), function
        self.sharded = size() > 1 and _shard(model, sharded)
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            for block in _blocks(model):
                fully_shard(block)
            fully_shard(self.inner, reshard_after_forward=True)
            self.outer: nn.Module = self.inner
        elif size() > 1:
            self.outer = nn.parallel.DistributedDataParallel(self.inner, broadcast_buffers=False)
        else:
            self.outer = self.inner

    def forward(self, *args: Any) -> Any:
        return self.outer(self.function, *args)

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients. Times the ranks, because both wrappers take means over them where we want sums."""
        (loss * size()).backward()

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one part of a step; only the last part waits for the other ranks."""
        if self.sharded:
            self.inner.set_requires_gradient_sync(last)  # type: ignore[operator]
        quiet = size() > 1 and not self.sharded and not last
        with self.outer.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            yield

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(model, *args), the same on every rank and without a gradient to share."""
        model: Any = self.inner.model
        if self.sharded:  # a copy of the weights alone, a fourth of what training them takes
            alone = type(model)(model.config).to(next(model.parameters()).device).train(model.training)
            alone.load_state_dict({name: whole(tensor) for name, tensor in model.state_dict().items()})
            model = alone
        return function(model, *args)


class _Call(nn.Module):
    """The root that FSDP needs: weights may only be used inside its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.model, *args)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for m in model.modules() if isinstance(m, nn.ModuleList) for block in m]


def _shard(model: nn.Module, wish: str) -> bool:
    if wish != "auto":
        return wish == "on"
    weight = next(model.parameters())
    need = 16 * sum(p.numel() for p in model.parameters())
    return weight.is_cuda and need > SHARD_ABOVE * torch.cuda.get_device_properties(weight.device).total_memory
