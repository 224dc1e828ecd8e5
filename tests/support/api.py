"""The module under test behind one name, ours or the stock package."""

import importlib
import os
import sys
import types

# Of the thread by which a stock agent makes progress, in us.  Stock's Python
# passes 0, with which it never sleeps and takes a whole core: of those a
# machine for tests has few.  With any other it sleeps until its backend has
# something to do.
PROGRESS_DELAY = int(os.environ.get("STOCK_PROGRESS_DELAY", "100000"))


class Api:
    """Looks a public name up in the package and in its `_bindings`.

    Ours exports everything at the top; stock keeps the classes of errors and
    lists in `nixl._bindings`.
    """

    def __init__(self, name):
        self.name = name
        self.stock = name == "nixl"
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
    """A module of stock's.  NIXL up to 1.3 imports torch, and asks of it only
    whether a list is a tensor; none of ours is."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
    torch = types.ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})
    torch.version = types.ModuleType("torch.version")
    torch.version.cuda = None
    sys.modules["torch"] = torch
    sys.modules["torch.version"] = torch.version
    return importlib.import_module(name)


def let_progress_sleep(binding, delay):
    """What stock's Python makes agents with has that delay in place of 0."""
    if delay == 0 or hasattr(binding.nixlAgentConfig, "progress_delay"):
        return

    class Config(binding.nixlAgentConfig):
        progress_delay = delay

        def __setattr__(self, name, value):
            if name == "pthrDelay" and value == 0:
                value = self.progress_delay
            super().__setattr__(name, value)

    binding.nixlAgentConfig = Config
