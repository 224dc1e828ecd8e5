"""Replaces `nixl` by vllm_nixl, for programs that import `nixl`.

Design note.  The names are entries in sys.modules.  So nothing has to be
installed under them, and an installed stock NIXL stays untouched on disk.  A
package (`nixl`, `nixl_cu12`, ...) is a new module with all public names.  Its
submodules are vllm_nixl's own modules, so that a class is the same under every
name from which it is imported.

Clients in other languages find libraries by name.  dlopen("libnixl_capi.so")
returns a library of that SONAME that is loaded already, so install() loads
ours.  kvbm's extension is linked with NVIDIA's libnixl.so, for which it relies
on `import nixl`; that is loaded when the extension is imported, because it
takes tens of milliseconds and most processes never need it.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

# What an extension module is linked with and does not find by itself.
_LINKED = {"kvbm._core": ("libnixl_build.so", "libnixl.so")}
_CAPI = "libnixl_capi.so"

PACKAGES = ("nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm", "rixl")
_SUBMODULES = ("_api", "_bindings", "_utils", "logging")

# vLLM's modules keep NIXL's classes under these names; None: NIXL not found.
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
    """Replace `nixl`, `nixl_cu12`, `nixl_cu13`, `nixl_rocm` and `rixl` by
    vllm_nixl in this process.

    It also loads this package's libnixl_capi.so, if there is one, for programs
    that dlopen() it by its name.

    Returns the names of the modules that were replaced; an empty list if they
    were replaced before.  If stock NIXL had been imported, modules that had
    imported names from it now have vllm_nixl's, and existing agents stay stock
    NIXL's; a RuntimeWarning says so.
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
        if _linked not in sys.meta_path:
            sys.meta_path.insert(0, _linked)
        _load_capi()
        users = _rebind(stock)
    if stock:
        _warn(stock, users)
    return missing


def uninstall() -> None:
    """Undo install().  Names imported from vllm_nixl meanwhile stay as they
    are, and libraries stay loaded."""
    with _lock:
        if _linked in sys.meta_path:
            sys.meta_path.remove(_linked)
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
    # Attributes that _api creates on first use.
    vars(package)["__getattr__"] = vars(parts["_api"])["__getattr__"]
    return package


# -- Libraries ---------------------------------------------------------------


def _load_capi() -> None:
    import os

    from ._core import _load_library

    path = os.path.join(os.path.dirname(__file__), _CAPI)
    if not os.path.exists(path):
        return  # a build without it
    try:
        _load_library(path)
    except OSError as error:
        import warnings

        warnings.warn(
            f"vllm_nixl.install(): programs that load {_CAPI} by its name do "
            f"not get vllm_nixl's: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


class _Linked:
    """A finder that finds nothing: it loads NVIDIA's libraries before the
    import of an extension module that is linked with them."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> None:
        if name in _LINKED:
            _load_stock(name, _LINKED[name])


_linked = _Linked()


def _load_stock(client: str, libraries: tuple[str, ...]) -> None:
    import os

    from ._cli.libraries import nixl
    from ._core import _load_library

    folder = os.path.dirname(nixl(os.environ, sys.path).path)
    for library in libraries:
        try:
            _load_library(os.path.join(folder, library))
        except OSError as error:
            raise ImportError(
                f"{client} is linked with NVIDIA's {library}, which cannot be "
                f"loaded: {error}. Install stock NIXL beside vllm_nixl, which "
                "keeps the name nixl: pip install nixl",
                name=client,
            ) from None


# -- Stock NIXL imported before ----------------------------------------------


def _rebind(stock: dict[str, ModuleType]) -> list[str]:
    """Rebind names in modules that imported stock NIXL, or did not find it.

    Returns the names of those modules.
    """
    users = set()
    counterparts = _counterparts(stock)
    for module in list(sys.modules.values()):
        # Programs may put objects there that are not modules.
        if isinstance(module, type(sys)) and id(module) not in counterparts:
            for name, new in _changes(module, counterparts).items():
                _rebound.append((module, name, vars(module)[name]))
                setattr(module, name, new)
                users.add(module.__name__)
    return sorted(users)


def _changes(
    module: ModuleType, counterparts: dict[int, object]
) -> dict[str, object]:
    """Map names in the module to the values that they should get."""
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
    """Map ids of stock's modules and classes to vllm_nixl's."""
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
        f"vllm_nixl.install(): {packages or 'stock NIXL'} was imported "
        "before. Imports get vllm_nixl from now on; modules whose names were "
        f"changed to vllm_nixl's: {taken}. Existing agents stay stock NIXL's. "
        "Call install() earlier to avoid this, or set "
        "VLLM_NIXL_AS_NIXL=1, which installs at the start of the interpreter.",
        RuntimeWarning,
        stacklevel=3,
    )
