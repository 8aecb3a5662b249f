"""This module sends tensors from process to process in order, a few at a time, while both keep working."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrain.placing.placement import PipelineStage

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8)
MOST_TENSORS, MOST_DIMS = 3, 5
WORDS = 4 + 2 * MOST_DIMS


class Peer(NamedTuple):
    """A `Peer` is a process on the other side, and our rows that are also its rows."""

    rank: int
    rows: slice


class Traffic:
    """A `Traffic` counts what a process's transfers cost since it was last read."""

    KINDS = ("idle", "queue", "sent_mib")

    def __init__(self, waiting: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._waiting = waiting
        self._idle, self._bytes, self._ready = 0.0, 0, 0

    def wait(self, works: Sequence[Any]) -> None:
        """Wait for transfers; the time counts as idle."""
        start = time.perf_counter()
        with self._waiting():
            for work in works:
                work.wait()
        self._idle += time.perf_counter() - start

    def sent(self, tensor: Tensor) -> None:
        """Count bytes that are sent."""
        self._bytes += tensor.nbytes

    def arrived(self, count: int) -> None:
        """Note how many messages are ready."""
        self._ready = count

    def taken(self) -> dict[str, float]:
        """Return the seconds waited, the messages that were ready and the MiB sent, and count anew."""
        values = (self._idle, float(self._ready), self._bytes / 2**20)
        self._idle, self._bytes = 0.0, 0
        return dict(zip(self.KINDS, values, strict=True))


def peers(own: PipelineStage, copy: int, other: PipelineStage, batch_size: int) -> list[Peer]:
    """Return the processes of a neighbouring stage that share rows with this copy of our stage."""

    def rows(stage: PipelineStage, number: int) -> range:
        return range(batch_size * number // stage.copies, batch_size * (number + 1) // stage.copies)

    mine, sharing = rows(own, copy), []
    for number, rank in enumerate(other.ranks):
        theirs = rows(other, number)
        low, high = max(mine.start, theirs.start), min(mine.stop, theirs.stop)
        if low < high:
            sharing.append(Peer(rank, slice(low - mine.start, high - mine.start)))
    return sharing


class Outlet:
    """An `Outlet` sends messages of tensors with a row per image; only so many are under way at a time."""

    def __init__(
        self,
        to: Sequence[Peer],
        traffic: Traffic,
        group: torch.distributed.ProcessGroup | None,
        *,
        limit: int,
        described: bool = False,
        rounded: bool = False,
    ) -> None:
        """Connect an outlet with its peers.

        Arguments:
            to: The processes that receive.
            traffic: What counts the cost.
            group: The process group of the transfers.
            limit: The most messages that may be under way.
            described: Whether each message describes its shapes, and not only the first one.
            rounded: Whether the first tensor of each message is sent in bf16.
        """
        self._to, self._traffic, self._group = to, traffic, group
        self._limit, self._described, self._rounded = limit, described, rounded
        self._under_way: deque[tuple[list[Any], list[Tensor]]] = deque()
        self._specs: list[tuple[torch.dtype, torch.Size, tuple[int, ...]]] = []

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Start to send a message; wait first while too many are under way."""
        while len(self._under_way) >= self._limit:
            self._traffic.wait(self._under_way.popleft()[0])
        dense = [tensor if _is_dense(tensor) else tensor.contiguous() for tensor in tensors]
        wire = [
            tensor.to(torch.bfloat16) if self._rounded and number == 0 else tensor
            for number, tensor in enumerate(dense)
        ]
        specs = [(tensor.dtype, tensor.shape[1:], tensor.stride()[1:]) for tensor in dense]
        assert self._described or self._specs in ([], specs), "a message of other shapes than the first"
        first, self._specs = not self._specs, specs
        kept, works = list(wire), []
        for rank, rows in self._to:
            if first or self._described:
                header = _header(dense, wire, rows)
                kept.append(header)
                works.append(self._start(header, rank))
            works += [self._start(_matrix(tensor)[rows], rank) for tensor in wire]
        self._under_way.append((works, kept))

    def end(self) -> None:
        """Announce that no more described messages come, and wait until all have been sent."""
        header = _header([], [], slice(0, 0)).to(_device(self._group))
        self._traffic.wait([self._start(header, rank) for rank, _ in self._to])
        while self._under_way:
            self._traffic.wait(self._under_way.popleft()[0])

    def _start(self, tensor: Tensor, rank: int) -> Any:
        self._traffic.sent(tensor)
        return torch.distributed.isend(tensor, rank, group=self._group)


class Inlet:
    """An `Inlet` receives what the outlets of the neighbouring stage send, and puts the rows together."""

    def __init__(
        self,
        of: Sequence[Peer],
        traffic: Traffic,
        group: torch.distributed.ProcessGroup | None,
        *,
        ahead: int,
        described: bool = False,
        counted: bool = False,
    ) -> None:
        """Connect an inlet with its peers.

        Arguments:
            of: The processes that send.
            traffic: What counts the cost.
            group: The process group of the transfers.
            ahead: The number of messages for which there is room before they are asked for.
            described: Whether each message describes its shapes, and not only the first one.
            counted: Whether the traffic counts how many messages are ready.
        """
        self._of, self._traffic, self._group = of, traffic, group
        self._ahead, self._described, self._counted = ahead, described, counted
        self._specs: list[_Spec] = []
        self._posted: deque[tuple[list[Any], list[Tensor]]] = deque()

    def receive(self, coming: int = 1) -> list[Tensor]:
        """Return the next of `coming` messages that will certainly come, or nothing after the last of all."""
        if self._described or not self._specs:
            self._specs = self._hear()
        if not self._specs:
            return []
        self._make_room(min(max(1, self._ahead), coming))
        if self._counted:
            self._traffic.arrived(sum(all(w.is_completed() for w in works) for works, _ in self._posted))
        works, buffers = self._posted.popleft()
        self._traffic.wait(works)
        self._make_room(min(self._ahead, coming - 1))
        return [spec.restored(buffer) for spec, buffer in zip(self._specs, buffers, strict=True)]

    def _make_room(self, messages: int) -> None:
        while len(self._posted) < messages:
            works, buffers = [], []
            for spec in self._specs:
                buffer = spec.room(_device(self._group))
                buffers.append(buffer)
            for rank, rows in self._of:
                works += [torch.distributed.irecv(part[rows], rank, group=self._group) for part in buffers]
            self._posted.append((works, buffers))

    def _hear(self) -> list["_Spec"]:
        """Return what each message consists of, as all senders describe it."""
        headers = [_header([], [], slice(0, 0)).to(_device(self._group)) for _ in self._of]
        self._traffic.wait(
            [
                torch.distributed.irecv(header, rank, group=self._group)
                for header, (rank, _) in zip(headers, self._of, strict=True)
            ]
        )
        described = [_read_header(header.tolist()) for header in headers]
        counts = [specs[0].rows if specs else 0 for specs in described]
        return [spec._replace(rows=sum(counts)) for spec in described[0]]


class _Spec(NamedTuple):
    """What is known about a tensor before it arrives; its rows lie one after the other in memory."""

    dtype: torch.dtype
    on_the_way: torch.dtype
    rows: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def room(self, device: torch.device) -> Tensor:
        """Return a matrix that has room for the tensor's rows."""
        return torch.empty(self.rows, math.prod(self.sizes), dtype=self.on_the_way, device=device)

    def restored(self, matrix: Tensor) -> Tensor:
        """Return the tensor as it was, also in its layout; another layout would round differently later."""
        size = math.prod(self.sizes)
        return matrix.as_strided((self.rows, *self.sizes), (size, *self.strides)).to(self.dtype)


def _header(tensors: Sequence[Tensor], wire: Sequence[Tensor], rows: slice) -> Tensor:
    """Return the shapes of a message for one peer, as numbers."""
    words = [len(tensors)]
    for tensor, on_the_way in zip(tensors, wire, strict=True):
        sizes, strides = tensor.shape[1:], tensor.stride()[1:]
        padding = [0] * (MOST_DIMS - len(sizes))
        count = len(range(*rows.indices(len(tensor))))
        words += [DTYPES.index(tensor.dtype), DTYPES.index(on_the_way.dtype), count]
        words += [len(sizes), *sizes, *padding, *strides, *padding]
    words += [0] * (1 + MOST_TENSORS * WORDS - len(words))
    return torch.tensor(words, dtype=torch.int64, device=tensors[0].device if tensors else "cpu")


def _read_header(words: list[int]) -> list[_Spec]:
    specs = []
    for number in range(words[0]):
        start = 1 + number * WORDS
        dtype, on_the_way, rows, dims = words[start : start + 4]
        sizes = tuple(words[start + 4 : start + 4 + dims])
        strides = tuple(words[start + 4 + MOST_DIMS : start + 4 + MOST_DIMS + dims])
        specs.append(_Spec(DTYPES[dtype], DTYPES[on_the_way], rows, sizes, strides))
    return specs


def _matrix(tensor: Tensor) -> Tensor:
    size = math.prod(tensor.shape[1:])
    return tensor.as_strided((len(tensor), size), (size, 1))


def _is_dense(tensor: Tensor) -> bool:
    """Return whether each row fills a stretch of memory, and the next row the stretch after it."""
    filled = 1
    for stride, size in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if size > 1 and stride != filled:
            return False
        filled *= size
    return len(tensor) == 1 or tensor.stride(0) == filled


def _device(group: torch.distributed.ProcessGroup | None) -> torch.device:
    if torch.distributed.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
