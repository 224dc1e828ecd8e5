import numpy as np
from vllm_nixl import NixlAgent

agent = NixlAgent("decode")
cache = np.zeros((4096, 65536), np.uint8)
agent.register_memory([(cache.ctypes.data, cache.nbytes, 0, "")], "DRAM")
rows = np.array([(block.ctypes.data, block.nbytes, 0) for block in cache])
local = agent.prep_xfer_dlist("NIXL_INIT_AGENT", rows, "DRAM")
peer = agent.attach("localhost", 18000)
remote = peer.rows("kv")

for first in range(0, 4096, 1024):
    blocks = range(first, first + 1024)
    with agent.make_prepped_xfer(
        "READ", local, blocks, remote, blocks, f"{first} done"
    ) as handle:
        agent.transfer(handle)
        agent.wait([handle], timeout=5)  # or: await agent.wait_async(handle)
print("all blocks are here")
