"""install() where VLLM_NIXL_AS_NIXL=1 asks for it.

Called at the start of the interpreter (vllm_nixl.pth) and by the plug-in
loaders of vLLM and SGLang; all other programs pay one look at the environment.
"""

import os


def register() -> None:
    """install(), if VLLM_NIXL_AS_NIXL is 1."""
    if os.environ.get("VLLM_NIXL_AS_NIXL") == "1":
        from ._aliases import install

        install()
