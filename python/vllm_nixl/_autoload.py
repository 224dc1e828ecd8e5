"""Calls install() if VLLM_NIXL_AS_NIXL=1 is set.

Called at the start of the interpreter (vllm_nixl.pth) and by the plug-in
loaders of vLLM and SGLang.  Other programs only pay for a lookup in the
environment.
"""

import os


def register() -> None:
    """Call install() if VLLM_NIXL_AS_NIXL is 1."""
    if os.environ.get("VLLM_NIXL_AS_NIXL") == "1":
        from ._aliases import install

        install()
