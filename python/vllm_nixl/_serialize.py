"""Descriptor lists as bytes: NIXL's pickles, read without running them.

A pickle of a list always has the same few opcodes: the class by module and
name, an empty argument tuple, the state as bytes.  The reader accepts only
those, so hostile bytes can create only a descriptor list.  The writer uses the
module name that every NIXL can import, so that stock agents can read them.
"""

from __future__ import annotations

from ._core import nixlMismatchError, nixlRegDList, nixlXferDList

_CLASSES: dict[str, type[nixlXferDList | nixlRegDList]] = {
    "nixlXferDList": nixlXferDList,
    "nixlRegDList": nixlRegDList,
}
_MODULES = frozenset(
    f"{package}._bindings"
    for package in (
        "nixl",
        "nixl_cu12",
        "nixl_cu13",
        "nixl_rocm",
        "rixl",
        "vllm_nixl",
    )
) | {"vllm_nixl._core"}

_IGNORED = frozenset(
    ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
)
_TEXTS = frozenset(("SHORT_BINUNICODE", "BINUNICODE"))
_BYTES = frozenset(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"))
_END = ["EMPTY_TUPLE", "NEWOBJ", "bytes", "BUILD", "STOP"]


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def serialize(descs: nixlXferDList | nixlRegDList) -> bytes:
    if not isinstance(descs, (nixlXferDList, nixlRegDList)):
        raise TypeError(
            "get_serialized_descs: descs must be a nixlXferDList or a "
            f"nixlRegDList, not {type(descs).__name__}"
        )
    state = descs.__getstate__()
    return b"".join(
        (
            b"\x80\x04",  # protocol 4
            _text("nixl._bindings"),
            _text(type(descs).__name__),
            b"\x93)\x81",  # the class, no arguments, a new object
            b"\x8e" + len(state).to_bytes(8, "little") + state,
            b"b.",  # its state, the end
        )
    )


def _mismatch(cause: str) -> nixlMismatchError:
    error = nixlMismatchError(f"NIXL_ERR_MISMATCH: deserialize_descs: {cause}")
    error.operation = "deserialize_descs"
    return error


def _read(data: bytes) -> tuple[str, str, bytes]:
    """Return module, class and state from a pickle of one object."""
    import pickletools

    steps: list[str] = []
    texts: list[str] = []
    state = b""
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _IGNORED:
            continue
        if name in _TEXTS:
            texts.append(str(argument))
            name = "text"
        elif name in _BYTES:
            state = bytes(argument or b"")
            name = "bytes"
        elif name == "GLOBAL":
            texts = str(argument).split(" ")
            name = "class"
        steps.append(name)
        if len(steps) > 8:
            break
    if steps not in (
        ["text", "text", "STACK_GLOBAL", *_END],
        ["class", *_END],
    ):
        raise ValueError("not the pickle of one list")
    module, kind = texts
    return module, kind, state


def deserialize(data: bytes) -> nixlXferDList | nixlRegDList:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(
            "deserialize_descs: serialized_descs must be bytes, "
            f"not {type(data).__name__}"
        )
    try:
        module, kind, state = _read(bytes(data))
    except Exception:  # pickletools may raise any exception
        raise _mismatch(
            "the bytes are not a serialised descriptor list"
        ) from None
    if module not in _MODULES or kind not in _CLASSES:
        raise _mismatch("the bytes are an object of another class")
    descs = _CLASSES[kind](0)
    descs.__setstate__(state)
    return descs
