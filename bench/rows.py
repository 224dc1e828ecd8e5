"""The rows of the benchmark: their metrics and targets."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """One figure of a row.  Lower is better, unless `higher` is set."""

    key: str
    text: str
    unit: str
    target: float | None
    higher: bool = False
    bare_target: float | None = None  # for the ratio to the bare loop


@dataclass(frozen=True)
class Row:
    """`name` is a function of a measure_*.py module."""

    name: str
    metrics: list[Metric]
    stock: bool = True
    # Kind of loop; block size in bytes, or a time in us.
    bare: tuple[str, int] | None = None
    slow: bool = field(default=False)  # one repetition is enough


def _read(name: str, block: int, target: float, text: str) -> Row:
    metric = Metric(
        "gbs", f"READ, scattered {text}", "GB/s", target, True, 0.85
    )
    return Row(name, [metric], bare=("readv", block))


def _shared(name: str, block: int, text: str) -> Row:
    metric = Metric(
        "gbs", f"READ, shared region, {text}", "GB/s", 14, True, 0.75
    )
    return Row(name, [metric], stock=False, bare=("stream", block))


def _ucx(name: str, text: str, post: bool = False) -> Row:
    """Transfers by UCX.  The column "x stock" compares them with stock."""
    metrics = [
        Metric(
            f"{operation}_{block}k",
            f"UCX{text}, {operation.upper()} of {block} KiB",
            "GB/s",
            None,
            True,
        )
        for operation in ("read", "write")
        for block in (16, 64, 1024)
    ]
    if post:
        metrics.append(
            Metric("post_16k", "transfer() of 16 384 pieces", "ms", 0.1)
        )
    return Row(name, metrics)


def _asked(name: str, text: str, p50: float, *others: Metric) -> Row:
    """Requests to a side channel, one after the other."""
    metrics = [
        Metric("p50_us", f"{text}, p50", "us", p50),
        Metric("p99_us", "the same, p99", "us", 5000),
    ]
    return Row(name, [*metrics, *others], stock=False)


ROWS = [
    Row(
        "import",
        [
            Metric("ms", "import", "ms", 30),
            Metric("mb", "memory of the process after the import", "MB", 25),
        ],
    ),
    Row(
        "idle",
        [Metric("cores", "idle agent, default configuration", "core", 0.005)],
        slow=True,
    ),
    Row(
        "prepare_random",
        [Metric("ms", "prepare 1 M, random, Nx3", "ms", 9)],
    ),
    Row(
        "prepare_strided",
        [
            Metric("ms", "prepare 1 M, regular stride", "ms", 4),
            Metric("mb", "peak memory of that", "MB", 1),
            Metric("straight_ms", "the same, directly from Nx3", "ms", 4),
            Metric("straight_mb", "peak memory of that", "MB", 1),
        ],
    ),
    Row(
        "prepare_tuples",
        [Metric("ms", "prepare 200 k from tuples", "ms", 8)],
    ),
    Row(
        "prepare_regions",
        [
            Metric(
                "local_ordered_ms",
                "prepare 100 k rows in 100 k regions",
                "ms",
                None,
            ),
            Metric(
                "remote_ordered_ms", "the same, regions of a peer", "ms", None
            ),
            Metric(
                "local_shuffled_ms",
                "10 k of them, in random order",
                "ms",
                None,
            ),
            Metric(
                "remote_shuffled_ms", "the same, regions of a peer", "ms", None
            ),
        ],
    ),
    Row(
        "make_contiguous",
        [Metric("us", "make_prepped_xfer, 8 576 contiguous", "us", 5)],
    ),
    Row(
        "make_scattered",
        [Metric("ms", "make_prepped_xfer, 100 k scattered", "ms", 1)],
    ),
    Row(
        "make_one",
        [Metric("us", "make_prepped_xfer, 1, and release", "us", 0.8)],
    ),
    Row(
        "polls",
        [
            Metric("check_us", "check_xfer_state", "us", 0.08),
            Metric("notifs_us", "get_new_notifs, empty", "us", 0.08),
        ],
    ),
    Row(
        "small_transfer",
        [Metric("us", "512 bytes in a process, make to release", "us", 2)],
    ),
    Row(
        "scattered_transfer",
        [
            Metric("caller_ms", "transfer(), 100 k x 512 B", "ms", 0.1),
            Metric("all_ms", "the same, until completion", "ms", 60),
        ],
    ),
    Row(
        "transfer_tail",
        [
            Metric(
                "p99_us", "transfer(), 100 k x 512 B, p99 of 500", "us", 100
            ),
            Metric("longest_us", "the same, the longest", "us", 100),
        ],
        stock=False,
        bare=("wake", 7000),  # us for which the other thread is busy
    ),
    _read("read_4k", 4 << 10, 4.8, "4 KiB"),
    _read("read_16k", 16 << 10, 7, "16 KiB"),
    _read("read_64k", 64 << 10, 8, "64 KiB"),
    _read("read_1m", 1 << 20, 8, "1 MiB"),
    _shared("shared_4k", 4 << 10, "4 KiB"),
    _shared("shared_16k", 16 << 10, "16 KiB"),
    _shared("shared_64k", 64 << 10, "64 KiB"),
    _shared("shared_1m", 1 << 20, "1 MiB"),
    Row(
        "read_latency",
        [Metric("us", "READ of one 4 KiB block, p50", "us", 3)],
        bare=("latency", 4096),
    ),
    Row(
        "notification",
        [Metric("us", "notification round trip, p50", "us", 30)],
    ),
    _ucx("ucx", "", post=True),
    _ucx("ucx_two", ", two workers"),
    _ucx("ucx_tcp", " by TCP"),
    Row(
        "ucx_wake",
        [
            Metric("us", "UCX notification wakes an agent, p50", "us", 60),
            Metric("from_stock_us", "the same, from stock", "us", 60),
        ],
        stock=False,
        bare=("deliver", 2000),  # the same pause as in ucx_wake
    ),
    Row(
        "gil_stall",
        [Metric("ms", "another thread's wait, preparing 1 M", "ms", 1)],
    ),
    _asked("side_channel", "side channel, 1 KiB", 300),
    _asked(
        "side_channel_crowd", "the same, 2 000 other clients connected", 300
    ),
    _asked(
        "side_channel_zmq",
        "vLLM's handshake by ZMQ, 1 KiB",
        600,
        Metric("pyzmq_p50_us", "the same by pyzmq, p50", "us", None),
        Metric("pyzmq_p99_us", "the same, p99", "us", None),
    ),
    _asked("side_channel_http", "side channel by HTTP, 1 KiB", 1000),
    Row(
        "side_channel_many",
        [
            Metric("tcp_ms", "1 000 requests at once, TCP", "ms", 1000),
            Metric("zmq_ms", "the same, ZMQ", "ms", 1000),
            Metric("http_ms", "the same, HTTP", "ms", 1000),
        ],
        stock=False,
    ),
]
