"""A program that prints the result of each kind of wrong input on one engine.

    python -m support.parity

prints {case: [class, message, row]} of the table in test_wrong_input, on the
engine that the environment asks for.  Addresses, which differ between
processes, the engine's name and those of its backends are left out.
"""

import json
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "python"))

ADDRESS = re.compile(r"0x[0-9a-f]{6,16}\b")
BY_NAME = re.compile(r"\b(native|nixl)\b")
# Depends on where the process has the memory of its agents.
HINT = re.compile(r"; (peer '[^']*'|this agent) has registered memory[^?]*\?")
HAS = re.compile(r"(has no backend '\w+': the choices are) [A-Z_, 0-9]*")


def plain(text):
    """A message without the parts that may differ between engines and
    processes."""
    text = BY_NAME.sub("ENGINE", ADDRESS.sub("ADDRESS", text))
    return HINT.sub("", HAS.sub(r"\1 BACKENDS", text))


def outcome(call, scene):
    try:
        call(scene)
    except Exception as error:
        row = getattr(error, "index", None)
        return [type(error).__name__, plain(str(error)), row]
    return ["nothing was raised", "", None]


def outcomes():
    """Every case of the table, by its name."""
    from test_wrong_input import MATRIX, Scene

    from support.api import Api
    from support.endpoint import Endpoint

    here, there, third = (
        Endpoint("vllm_nixl", f"parity-{name}", {})
        for name in ("here", "there", "third")
    )
    there.add(here.metadata())
    scene = Scene(Api("vllm_nixl"), here, there, third)
    found = {
        f"{group}: {entry.id}": outcome(entry.values[0], scene)
        for group, entries in MATRIX.items()
        for entry in entries
    }
    scene.check_works()
    described = here.agent.describe()
    path = here.agent.describe(there.name)["path"]
    for one in (here, there, third):
        one.close()
    return {
        "engine": described["engine"],
        "path": path,
        "cases": found,
    }


if __name__ == "__main__":
    print(json.dumps(outcomes()))
