"""A named pipe makes a function wait that opens or reads a file."""

import os
import time


def open_while(pipe, is_wanted):
    """Let everybody through who opens the pipe, as if it were empty."""
    while is_wanted():
        try:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody opens it
            time.sleep(0.001)
