"""Subinterpreters, by the module that this version of Python has for them.

    with Interpreter() as sub:
        sub.run("import vllm_nixl")

From Python 3.12 on each has a GIL of its own.
"""

import sys

if sys.version_info >= (3, 14):
    from concurrent import interpreters
elif sys.version_info >= (3, 13):
    import _interpreters as interpreters
else:
    import _xxsubinterpreters as interpreters


class InterpreterError(Exception):
    """An exception that the source raised."""


class Interpreter:
    def __init__(self):
        self.created = interpreters.create()

    def run(self, source):
        """Run `source` in its __main__, in the calling thread."""
        if sys.version_info >= (3, 14):
            self.created.exec(source)
        elif sys.version_info >= (3, 13):
            failure = interpreters.exec(self.created, source)
            if failure is not None:
                raise InterpreterError(failure.errdisplay)
        else:
            interpreters.run_string(self.created, source)

    def close(self):
        if sys.version_info >= (3, 14):
            self.created.close()
        else:
            interpreters.destroy(self.created)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()
