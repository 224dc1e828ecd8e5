"""What scripts/gpu_check.sh runs: checks and figures of GPU memory.

__main__.py         runs the steps, each in a process of its own
steps.py            the steps, in the order of their importance
step.py             the process of a step
report.py           what a step declares, and how it reports
table.py            what is printed, and the JSON
driver.py           the driver's functions, by ctypes
memory.py           the kinds of memory that clients register
endpoint.py         an agent with memory, also in another process
pair.py             two of them: what most checks need
machine.py          what the machine is
right_*.py          steps that pass or fail: each is a list of checks
figures_*.py        steps that measure: each is a list of rows
sides.py            measuring ours, stock NIXL and the driver in turns
worker.py           the measuring processes of the figures, also of stock NIXL

It needs vllm_nixl and numpy.  Stock NIXL and PyTorch take part if they are
there.
"""
