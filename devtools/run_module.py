"""Run a tool of the environment as `python -m` would, without the current folder on sys.path.

`python -m` puts the checkout's root there, whose folders hide the host's modules; the
tools' own start scripts carry the environment's path and break when it is moved.
"""

import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
