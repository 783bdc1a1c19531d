"""A process that has imported what every run needs, which takes seconds, and forks for each start of python.

Each start is a process of its own all the same: with its environment, streams, signals, and status. Called with the
number of a socket, see `forked` in conftest.py: it gives arguments, environment and directory, as JSON, and three
files: for the output, the errors, and the status.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys

import orbax.checkpoint  # noqa: F401

import simclr_jax.evaluate.knn_task  # noqa: F401
import simclr_jax.evaluate.linear  # noqa: F401
import simclr_jax.train  # noqa: F401
from simclr_jax import main


def start(arguments, environment, directory, output, error):
    """As `python ARGUMENTS`: a module, which is the command, or a script."""
    os.dup2(output, 1)
    os.dup2(error, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    signal.alarm(300)
    is_command = arguments[:2] == ['-m', 'simclr_jax.main']
    sys.argv = arguments[is_command:]
    if is_command:
        main.run()
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name='__main__')


if __name__ == '__main__':
    calls = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while (call := socket.recv_fds(calls, 1 << 16, 3))[0]:
        request, (output, error, status), *_ = call
        if not os.fork():                   # it waits for the other, which is the start
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            calls.close()
            if not (child := os.fork()):
                os.close(status)
                start(*json.loads(request), output, error)
                sys.exit()
            os.write(status, b'%d' % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os._exit(0)
        for file in (output, error, status):
            os.close(file)
        calls.send(b'.')
