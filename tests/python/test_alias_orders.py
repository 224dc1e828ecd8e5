"""install() and uninstall() in any order, with and without stock, while
modules appear and disappear: sys.modules must match a model.
"""

import contextlib
import sys
import threading
import types
import warnings

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.beyond_stock

PACKAGES = ["nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm", "rixl"]
PARTS = ["_api", "_bindings", "_utils", "logging"]
EVERY = [
    name for top in PACKAGES for name in (top, *(f"{top}.{p}" for p in PARTS))
]
ACTS = st.one_of(
    st.sampled_from(["install", "uninstall"]),
    st.tuples(st.just("delete"), st.sampled_from(EVERY)),
    st.tuples(st.just("stock"), st.sampled_from(EVERY)),
)


@contextlib.contextmanager
def nothing_of_nixl():
    """Remove every aliased module; restore all of them afterwards."""
    import vllm_nixl

    def of_nixl():
        return [name for name in sys.modules if name in EVERY]

    vllm_nixl.uninstall()
    saved = {name: sys.modules.pop(name) for name in of_nixl()}
    try:
        yield vllm_nixl
    finally:
        vllm_nixl.uninstall()
        for name in of_nixl():
            del sys.modules[name]
        sys.modules.update(saved)


def present():
    return {name: sys.modules[name] for name in EVERY if name in sys.modules}


class Model:
    """The expected sys.modules, by name; "ours" marks our modules."""

    def __init__(self):
        self.has, self.replaced, self.on = {}, {}, False

    def install(self):
        missing = [name for name in EVERY if self.has.get(name) != "ours"]
        for name in missing:
            if name in self.has:
                self.replaced[name] = self.has[name]
            self.has[name] = "ours"
        self.on = True
        return missing

    def uninstall(self):
        if self.on:
            self.has = {
                name: what for name, what in self.has.items() if what != "ours"
            }
            self.has.update(self.replaced)
        self.replaced, self.on = {}, False


@hypothesis.given(acts=st.lists(ACTS, max_size=12))
@hypothesis.settings(max_examples=60, deadline=None, database=None)
def test_any_order_of_install_and_uninstall_matches_the_model(module, acts):
    with nothing_of_nixl() as package, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        model = Model()
        for act in acts:
            if act == "install":
                assert package.install() == model.install()
            elif act == "uninstall":
                package.uninstall()
                model.uninstall()
            elif act[0] == "delete":
                sys.modules.pop(act[1], None)
                model.has.pop(act[1], None)
            else:
                stock = types.ModuleType(act[1])
                sys.modules[act[1]] = model.has[act[1]] = stock
            found = present()
            assert list(found) == [n for n in EVERY if n in model.has]
            for name, what in model.has.items():
                is_ours = found[name] is not what
                assert is_ours == (what == "ours"), name


def test_concurrent_installs_install_once(module):
    with nothing_of_nixl() as package:
        start, answers = threading.Barrier(8), []

        def run():
            start.wait()
            answers.append(package.install())

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(map(len, answers)) == [0] * 7 + [len(EVERY)]
        assert list(present()) == EVERY


def test_concurrent_install_and_uninstall_stay_consistent(module):
    with nothing_of_nixl() as package:
        errors = []

        def run(number):
            try:
                for turn in range(40):
                    (package.install, package.uninstall)[(turn + number) % 2]()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert errors == []
        package.uninstall()
        assert present() == {}
        assert package.install() == EVERY
