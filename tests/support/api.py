"""The module under test behind one name: ours, the stock package, or a library
with NIXL's C interface ("capi:FILE")."""

import importlib
import importlib.util
import os
import sys
import types

from support import capi

# Delay of a stock agent's progress thread in us.  Stock's Python passes 0: the
# thread never sleeps and uses a whole core, and test machines have few.  With
# any other value it sleeps until its backend has something to do.
PROGRESS_DELAY = int(os.environ.get("STOCK_PROGRESS_DELAY", "100000"))


class Api:
    """Looks a public name up in the package and in its `_bindings`.

    Ours exports everything at the top; stock keeps the classes of errors and
    lists in `nixl._bindings`.
    """

    def __init__(self, name):
        self.name = name
        self.stock = name == "nixl"
        if name.startswith(capi.PREFIX):
            self.modules = [capi.module(name)]
            return
        places = ["nixl._api", "nixl._bindings"] if self.stock else [name]
        load = load_stock if self.stock else importlib.import_module
        self.modules = [load(place) for place in places]
        if self.stock:
            let_progress_sleep(self.modules[0].nixlBind, PROGRESS_DELAY)
        else:
            self.modules.append(importlib.import_module(name + "._bindings"))

    def __getattr__(self, attribute):
        for module in self.modules:
            if hasattr(module, attribute):
                return getattr(module, attribute)
        raise AttributeError(f"{self.name} has no {attribute}")

    def error_classes(self):
        """Every exception class of the module by its name."""
        classes = {}
        for module in self.modules:
            for key, value in vars(module).items():
                if isinstance(value, type) and issubclass(value, Exception):
                    classes[key] = value
        return classes


def load_stock(name):
    """Import a stock module.  NIXL up to 1.3 imports torch only to check
    whether a list is a tensor; our tests pass no tensors.  NIXL 1.0 hides in
    its error that torch is what it misses."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if "torch" in sys.modules or importlib.util.find_spec("torch"):
            raise
    torch = types.ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})
    torch.version = types.ModuleType("torch.version")
    torch.version.cuda = None
    sys.modules["torch"] = torch
    sys.modules["torch.version"] = torch.version
    return importlib.import_module(name)


def let_progress_sleep(binding, delay):
    """Make stock's Python create agents with that delay instead of 0."""
    if delay == 0 or hasattr(binding.nixlAgentConfig, "progress_delay"):
        return

    class Config(binding.nixlAgentConfig):
        progress_delay = delay

        def __setattr__(self, name, value):
            if name == "pthrDelay" and value == 0:
                value = self.progress_delay
            super().__setattr__(name, value)

    binding.nixlAgentConfig = Config
