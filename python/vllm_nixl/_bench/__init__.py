"""What `vllm-nixl bench` and bench/compare.py measure with.

impl.py      one interface to our agents and to stock NIXL's; memory
child.py     a process that takes orders; which Python runs it
owner.py     the side whose memory is read and written
peer.py      that side as the other one sees it
reader.py    the side that makes transfers
points.py    the measurements: each returns the figures of one sample
bare.py      the same without an agent: bare loops in C
worker.py    the program of the processes
serve.py     `vllm-nixl bench --serve`
turns.py     measuring several sides in turns, and comparing them
plot.py      plots

Stock NIXL is measured in a Python that may lack our extension.  There,
alone.py makes a package of this folder without importing vllm_nixl.  So no
module here may import anything of vllm_nixl but this folder, except where
impl.py does.
"""
