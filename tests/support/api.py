"""The module under test behind one name, ours or the stock package."""

import importlib


class Api:
    """Looks a public name up in the package and in its `_bindings`.

    Ours exports everything at the top; stock keeps the classes of errors and
    lists in `nixl._bindings`.
    """

    def __init__(self, name):
        self.name = name
        self.stock = name == "nixl"
        places = ["nixl._api", "nixl._bindings"] if self.stock else [name]
        self.modules = [importlib.import_module(place) for place in places]
        if not self.stock:
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
