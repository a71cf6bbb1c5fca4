"""Deinterlace videos."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame


def progressive(frames: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
    """Deinterlace the (seconds, frame) pairs of a video from its first interlaced frame on, one for each."""
    frames = iter(frames)
    for time, frame in frames:
        if frame.interlaced_frame:
            yield from _deinterlaced(itertools.chain([(time, frame)], frames))
        else:
            yield time, frame


def _deinterlaced(frames: Iterable[tuple[float, VideoFrame]]) -> Iterator[tuple[float, VideoFrame]]:
    """Deinterlace frames that are marked as interlaced; each needs the next, so it comes one later."""
    graph, times = None, deque[float]()
    for number, (time, frame) in enumerate(frames):
        graph = graph or _deinterlacer(frame)
        frame.pts, frame.time_base = number, Fraction(1, 25)
        graph.vpush(frame)
        times.append(time)
        yield from _pulled(graph, times)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph, times)


def _pulled(graph: Graph, times: deque[float]) -> Iterator[tuple[float, VideoFrame]]:
    with suppress(av.error.BlockingIOError, av.error.EOFError):
        while times:
            frame = graph.vpull()
            yield times.popleft(), frame


def _deinterlacer(frame: VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add("bwdif", "send_frame:auto:interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph
