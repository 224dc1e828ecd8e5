"""Parameters of the backend UCX, read by our agent and by stock.

What an agent made of `engine_config` shows in whether UCX accepts the result:
`TLS=tcp` works, and no transport is called `nonsense`.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
from support.api import Api
from support.peer import child_environment

pytestmark = pytest.mark.usefixtures("need_ucx")

STOCK = os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")
SIDES = {"ours": ("vllm_nixl", None), "stock": ("nixl", STOCK)}

# Whether a backend with these parameters can be created.
WORKS = {
    "RCACHE_ENABLE=n,TLS=^cuda_ipc": True,  # vLLM's sleep mode
    "TLS=^rc_gda": True,  # vLLM's tier for other hosts
    "TLS=nonsense": False,
    "": True,
    # A comma ends an element, also within a list, quoted or escaped.
    "TLS=tcp,nonsense": True,
    "TLS=nonsense,tcp": False,
    'TLS="tcp,self"': False,
    "TLS=tcp\\,self": False,
    # No other separator.
    "TLS=tcp;TLS=nonsense": False,
    "TLS=tcp TLS=nonsense": False,
    # Elements without '=' are skipped, and empty ones.
    "TLS": True,
    ",,TLS=nonsense": False,
    "TLS=tcp,,": True,
    # Keys that UCX does not know, and values that it refuses, are skipped.
    "NO_SUCH_KEY=1,TLS=tcp": True,
    "NO_SUCH_KEY=1,TLS=nonsense": False,
    "RNDV_THRESH=nonsense": True,
    "UCX_TLS=nonsense": True,
    "tls=nonsense": True,
    "=nonsense": True,
    # Nothing is trimmed: a key with a blank is another key.
    " TLS=nonsense": True,
    "TLS =nonsense": True,
    "TLS= tcp": False,
    # The first '=' ends the key.
    "TLS=tcp=self": False,
    # Of equal keys the last one counts.
    "TLS=nonsense,TLS=tcp": True,
    "TLS=tcp,TLS=nonsense": False,
    # An empty value is a value.
    "TLS=": False,
}

PROGRAM = """
import json, os, sys
from support.api import Api

api = Api(sys.argv[1])
config = api.nixl_agent_config(backends=[])

def works(number, parameters):
    agent = api.nixl_agent(f"agent-{number}", config)
    try:
        agent.create_backend("UCX", parameters)
    except Exception:
        return False
    return True

many = json.loads(sys.argv[2])
print(json.dumps([works(*pair) for pair in enumerate(many)]), flush=True)
os._exit(0)
"""


def ask(side, parameters, **env):
    """Whether each backend with these parameters can be created."""
    module, python = SIDES[side]
    done = subprocess.run(
        [
            python or sys.executable,
            "-c",
            PROGRAM,
            module,
            json.dumps(parameters),
        ],
        env=child_environment(
            {"VLLM_NIXL_ENGINE": "native", "UCX_TLS": None, **env}, python
        ),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=200,
    )
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def answers(side):
    found = ask(side, [{"engine_config": text} for text in WORKS])
    return dict(zip(WORKS, found, strict=True))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("text", WORKS)
def test_engine_config_is_read_as_by_stock(side, text):
    assert answers(side)[text] == WORKS[text]


@pytest.mark.parametrize("side", SIDES)
def test_environment_has_priority_over_engine_config(side):
    wrong = {"engine_config": "TLS=nonsense"}
    right = {"engine_config": "TLS=tcp"}
    assert ask(side, [wrong], UCX_TLS="tcp") == [True]
    assert ask(side, [right], UCX_TLS="nonsense") == [False]


@pytest.mark.parametrize("side", SIDES)
def test_num_threads_is_a_number(side):
    texts = ["4", "0", "x", "-1", "", "1.5"]
    found = ask(side, [{"num_threads": text} for text in texts])
    assert found == [True, True, False, False, False, False]


@pytest.mark.parametrize("text", ["1", "3"])
def test_num_threads_sets_the_number_of_workers(module, text):
    api = Api(module)
    agent = api.nixl_agent(
        f"workers-{text}", api.nixl_agent_config(backends=[], engine="native")
    )
    agent.create_backend("UCX", {"num_threads": text})
    assert agent.describe()["ucx_workers"] == int(text)
    agent.close()
