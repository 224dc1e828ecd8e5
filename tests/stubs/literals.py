"""Checked by mypy, never run: a misspelled name is an error of the type
checker.

mypy reports an ignored error that does not occur, so this file fails as soon
as the stubs accept any str.
"""

from vllm_nixl import (
    NixlAgent,
    nixl_agent_config,
    nixl_mem_t,
    nixl_prepped_dlist_handle,
    nixlXferDList,
)


def right(agent: NixlAgent, side: nixl_prepped_dlist_handle) -> None:
    rows = [(4096, 64, 0)]
    nixl_agent_config(engine="native")
    agent.prep_xfer_dlist("NIXL_INIT_AGENT", rows, "DRAM")
    agent.prep_xfer_dlist("peer", rows, "cuda")
    agent.prep_xfer_dlist("peer", rows, nixl_mem_t.VRAM_SEG)
    agent.register_memory([(4096, 64, 0, "")], "FILE")
    agent.make_prepped_xfer("READ", side, [0], side, [0])
    descs = nixlXferDList("BLOCK", rows)
    agent.initialize_xfer("WRITE", descs, descs, "peer")


def wrong(agent: NixlAgent, side: nixl_prepped_dlist_handle) -> None:
    rows = [(4096, 64, 0)]
    nixl_agent_config(engine="natve")  # type: ignore[arg-type]
    agent.prep_xfer_dlist("", rows, "dram")  # type: ignore[arg-type]
    agent.prep_xfer_dlist("", rows, "NIXL_INIT_AGENT")  # type: ignore[arg-type]
    agent.register_memory(
        [(4096, 64, 0, "")],
        "DRAMM",  # type: ignore[arg-type]
    )
    agent.make_prepped_xfer(
        "read",  # type: ignore[arg-type]
        side,
        [0],
        side,
        [0],
    )
    descs = nixlXferDList("CPU", rows)  # type: ignore[arg-type]
    agent.initialize_xfer(
        "WRTE",  # type: ignore[arg-type]
        descs,
        descs,
        "peer",
    )
    agent.query_memory([], "POSIX", "file")  # type: ignore[arg-type]
