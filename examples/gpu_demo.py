"""Moves blocks of GPU memory between two agents of a process, checks every
byte, and prints the rate.

    python examples/gpu_demo.py [--blocks N] [--size BYTES] [--rounds N]

The memory is PyTorch's if torch is there and sees a GPU, else the driver's
(libcuda.so.1, or what VLLM_NIXL_CUDA_LIBRARY names).
"""

import argparse
import ctypes
import os
import sys
import time

from vllm_nixl import NixlAgent

SEED = bytes(range(251))  # a prime length: no block begins like another


class TorchMemory:
    """A tensor of bytes on GPU 0."""

    def __init__(self, size):
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        self.tensor = torch.zeros(size, dtype=torch.uint8, device="cuda:0")
        self.address = self.tensor.data_ptr()

    def write(self, data):
        import torch

        self.tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        torch.cuda.synchronize()

    def read(self):
        return self.tensor.cpu().numpy().tobytes()


class DriverMemory:
    """Memory of GPU 0, from the driver."""

    cuda = None

    def __init__(self, size):
        if DriverMemory.cuda is None:
            DriverMemory.cuda = self.start()
        address = ctypes.c_uint64()
        self.call(
            "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size)
        )
        self.size, self.address = size, address.value

    @staticmethod
    def start():
        name = os.environ.get("VLLM_NIXL_CUDA_LIBRARY") or "libcuda.so.1"
        cuda = ctypes.CDLL(name)
        context, device = ctypes.c_void_p(), ctypes.c_int()
        for name, *args in (
            ("cuInit", 0),
            ("cuDeviceGet", ctypes.byref(device), 0),
            ("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0),
        ):
            # The device is a number that cuDeviceGet() has given: 0.
            result = getattr(cuda, name)(*args)
            if result != 0:
                raise RuntimeError(f"{name}: CUDA error {result}")
        cuda.cuCtxPushCurrent_v2(context)
        return cuda

    def call(self, name, *args):
        result = getattr(self.cuda, name)(*args)
        if result != 0:
            raise RuntimeError(f"{name}: CUDA error {result}")

    def write(self, data):
        self.call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(self.address),
            data,
            ctypes.c_size_t(self.size),
        )

    def read(self):
        data = ctypes.create_string_buffer(self.size)
        self.call(
            "cuMemcpyDtoH_v2",
            data,
            ctypes.c_uint64(self.address),
            ctypes.c_size_t(self.size),
        )
        return data.raw


def allocate(size):
    """Two pieces of GPU memory."""
    try:
        return [TorchMemory(size) for _ in range(2)]
    except (ImportError, RuntimeError):
        return [DriverMemory(size) for _ in range(2)]


def blocks(memory, size, count, order):
    return [
        (memory.address + i * size, size, 0) for i in range(count)[::order]
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=4096)
    parser.add_argument("--size", type=int, default=16384, help="of a block")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    total = args.size * args.blocks
    try:
        source, target = allocate(total)
    except (OSError, RuntimeError) as error:
        sys.exit(f"this needs an NVIDIA GPU and its driver: {error}")
    data = (SEED * (total // len(SEED) + 1))[:total]
    source.write(data)

    with NixlAgent("prefill") as prefill, NixlAgent("decode") as decode:
        prefill.register_memory([(source.address, total, 0, "")], "VRAM")
        decode.register_memory([(target.address, total, 0, "")], "VRAM")
        decode.add_remote_agent(prefill.get_agent_metadata())
        # The blocks arrive in reverse order, so each is copied by itself.
        there = decode.get_xfer_descs(
            blocks(source, args.size, args.blocks, 1), "VRAM"
        )
        here = decode.get_xfer_descs(
            blocks(target, args.size, args.blocks, -1), "VRAM"
        )
        handle = decode.initialize_xfer("READ", here, there, "prefill")
        best = None
        for _ in range(args.rounds):
            start = time.perf_counter()
            decode.transfer(handle)
            decode.wait(handle)
            spent = time.perf_counter() - start
            best = spent if best is None else min(best, spent)
        how = decode.describe()["gpus"][0]
        handle.release()

    turned = b"".join(
        data[i * args.size : (i + 1) * args.size]
        for i in reversed(range(args.blocks))
    )
    if target.read() != turned:
        sys.exit("some bytes are wrong")
    print(
        f"{args.blocks} blocks of {args.size} bytes, copied by "
        f"{how['copies_by']}: {total / best / 1e9:.2f} GB/s, every byte right"
    )


if __name__ == "__main__":
    main()
