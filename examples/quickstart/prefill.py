import asyncio

import numpy as np
from vllm_nixl import NixlAgent

agent = NixlAgent("prefill")
cache = np.random.default_rng(0).integers(0, 256, (4096, 65536), np.uint8)
agent.register_memory([(cache.ctypes.data, cache.nbytes, 0, "")], "DRAM")
rows = np.array([(block.ctypes.data, block.nbytes, 0) for block in cache])
agent.publish({"kv": rows}, port=18000)


async def main():
    print("serving", flush=True)
    async for sender, message in agent.notifications():
        print(f"{sender}: {message.decode()}", flush=True)


asyncio.run(main())
