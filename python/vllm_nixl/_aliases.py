"""vllm_nixl in the place of `nixl`, for programs that import that.

Design note.  The names are entries of sys.modules, so that nothing has to be
installed under them and stock NIXL beside us stays untouched on disk.  A
package (`nixl`, `nixl_cu12`, ...) is an empty module of its own with all
public names; its submodules are our modules themselves, so that a class is the
same whichever name it was imported by.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

PACKAGES = ("nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm", "rixl")
_SUBMODULES = ("_api", "_bindings", "_utils", "logging")

# The names by which vLLM's modules hold NIXL's, None where it found no NIXL.
_VLLM_NAMES = {
    "NixlWrapper": "nixl_agent",
    "nixl_agent_config": "nixl_agent_config",
    "nixlXferTelemetry": "nixlXferTelemetry",
}
_lock = allocate_lock()
_own: dict[str, ModuleType] = {}
_replaced: dict[str, ModuleType] = {}
_rebound: list[tuple[ModuleType, str, object]] = []


def install() -> list[str]:
    """Put vllm_nixl in the place of `nixl`, `nixl_cu12`, `nixl_cu13`,
    `nixl_rocm` and `rixl` in this process.

    Returns the names of modules that were put in place; none where they are
    already.  Where stock NIXL was imported before, a RuntimeWarning says what
    was done about it: modules that took names from it have ours now, agents
    that it made stay its own.
    """
    with _lock:
        modules = _own or _make_modules()
        missing = [
            name
            for name, module in modules.items()
            if sys.modules.get(name) is not module
        ]
        if not missing:
            return []
        stock = {
            name: sys.modules[name] for name in missing if name in sys.modules
        }
        _own.update(modules)
        _replaced.update(stock)
        for name in missing:
            sys.modules[name] = modules[name]
        users = _rebind(stock)
    if stock:
        _warn(stock, users)
    return missing


def uninstall() -> None:
    """Take install() back, as far as it goes: what took names from us
    meanwhile keeps them."""
    with _lock:
        for name, module in _own.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        sys.modules.update(_replaced)
        for module, name, value in _rebound:
            setattr(module, name, value)
        _own.clear()
        _replaced.clear()
        _rebound.clear()


# -- Modules -----------------------------------------------------------------


def _make_modules() -> dict[str, ModuleType]:
    from . import _api, _bindings, _utils, logging

    parts = dict(
        zip(_SUBMODULES, (_api, _bindings, _utils, logging), strict=True)
    )
    modules: dict[str, ModuleType] = {}
    for package in PACKAGES:
        modules[package] = _make_package(package, parts)
        for name, part in parts.items():
            modules[f"{package}.{name}"] = part
    return modules


def _make_package(name: str, parts: dict[str, ModuleType]) -> ModuleType:
    from importlib.machinery import ModuleSpec

    package = type(sys)(name, f"{__package__} in the place of {name}.")
    spec = ModuleSpec(name, None, origin=__file__, is_package=True)
    package.__spec__ = spec
    package.__path__ = spec.submodule_search_locations or []
    package.__package__ = name
    package.__file__ = __file__
    for part in parts.values():
        for key, value in vars(part).items():
            if key[0] != "_":
                setattr(package, key, value)
    vars(package).update(parts)
    # What _api makes at first use.
    vars(package)["__getattr__"] = vars(parts["_api"])["__getattr__"]
    return package


# -- What was there before ---------------------------------------------------


def _rebind(stock: dict[str, ModuleType]) -> list[str]:
    """Give ours to modules that took names from stock NIXL, or found none.

    Returns the names of those modules.
    """
    users = set()
    counterparts = _counterparts(stock)
    for module in list(sys.modules.values()):
        # Not everything that programs put there is a module.
        if isinstance(module, type(sys)) and id(module) not in counterparts:
            for name, new in _changes(module, counterparts).items():
                _rebound.append((module, name, vars(module)[name]))
                setattr(module, name, new)
                users.add(module.__name__)
    return sorted(users)


def _changes(
    module: ModuleType, counterparts: dict[int, object]
) -> dict[str, object]:
    """By name: what a module should have of ours."""
    found = {}
    if counterparts:
        for name, value in list(vars(module).items()):
            if id(value) in counterparts:
                found[name] = counterparts[id(value)]
    if module.__name__.partition(".")[0] == "vllm":
        for name, wanted in _VLLM_NAMES.items():
            if vars(module).get(name, _own) is None:
                found[name] = vars(_own["nixl"])[wanted]
    return found


def _counterparts(stock: dict[str, ModuleType]) -> dict[int, object]:
    """By the id of stock's modules and classes: ours."""
    found: dict[int, object] = {}
    ours = vars(_own["nixl"])
    for module_name, module in stock.items():
        found[id(module)] = _own[module_name]
        for name, value in vars(module).items():
            if (
                isinstance(value, type)
                and value.__module__.partition(".")[0] in PACKAGES
                and name in ours
            ):
                found[id(value)] = ours[name]
    return found


def _warn(stock: dict[str, ModuleType], users: list[str]) -> None:
    import warnings

    packages = ", ".join(name for name in stock if "." not in name)
    taken = ", ".join(users) or "none"
    warnings.warn(
        f"vllm_nixl.install(): {packages or 'stock NIXL'} had been imported "
        "before. Imports get vllm_nixl from now on; modules whose names were "
        f"changed from stock's to ours: {taken}. Agents that were made before "
        "stay stock's. Call install() earlier to avoid this, or set "
        "VLLM_NIXL_AS_NIXL=1, which installs at the start of the interpreter.",
        RuntimeWarning,
        stacklevel=3,
    )
