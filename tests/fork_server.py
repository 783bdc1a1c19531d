"""Runs `python -m simclr_jax.main` as a fork of a process that has imported its libraries already.

Most of a short command is the imports: 1.6 of 4 seconds. One process for each pytest worker,
`fork_server.py serve SOCKET`, pays for them once. `fork_server.py run SOCKET ARGUMENTS` is a command like
any other for subprocess: it hands over its arguments, its environment, its working directory and its three
standard streams, passes signals on, and ends with the status of the fork. If it is killed, so is the fork.
"""

import array
import json
import os
import select
import signal
import socket
import sys

_PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def serve(path):
    """Returns in each fork, with the request it is to carry out; ends the server when its stdin does."""
    import threading
    import warnings

    import simclr_jax.evaluate.linear
    import simclr_jax.train                                                     # noqa: F401
    from jax._src import xla_bridge

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print('ready', flush=True)
        while True:
            if listener not in select.select([sys.stdin, listener], [], [])[0]:
                sys.exit()
            # A backend has threads, which a fork would not: jax and Python warn for that reason.
            assert threading.active_count() == 1 and not xla_bridge.backends_are_initialized()
            connection, _ = listener.accept()
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                if os.fork() == 0:
                    listener.close()
                    return _watched_fork(connection)
            connection.close()
            _reap()


def _reap():
    """Forgets the watchers that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _watched_fork(connection):
    """Forks once more: returns the request in the fork, and waits for its end in this process."""
    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    request = json.loads(message)
    number = os.fork()
    if number == 0:
        connection.close()
        for standard, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        return request
    for descriptor in [*descriptors, 1, 2]:     # or who reads them would wait for this process too
        os.close(descriptor)
    connection.sendall(array.array('i', [number]).tobytes())
    ended = os.pidfd_open(number)
    if ended not in select.select([ended, connection], [], [])[0]:              # the command was killed
        os.kill(number, signal.SIGKILL)
    status = os.waitpid(number, 0)[1]
    try:
        connection.sendall(array.array('i', [status]).tobytes())
    except BrokenPipeError:
        pass
    os._exit(0)


def run(path, arguments):
    """Has the server at `path` run the command; ends as it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)        # until there is somebody to pass them on to
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        request = json.dumps({'arguments': arguments, 'directory': os.getcwd(),
                              'environment': dict(os.environ)})
        socket.send_fds(connection, [request.encode()], [0, 1, 2])
        number = _receive(connection)
        for each in _PASSED_ON:
            signal.signal(each, lambda received, frame: os.kill(number, received))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        status = _receive(connection)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in _PASSED_ON:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _receive(connection):
    data = connection.recv(4)
    if len(data) < 4:
        sys.exit('fork_server.py: the server is gone')
    return array.array('i', data)[0]


if __name__ == '__main__':
    what, where, *rest = sys.argv[1:]
    if what == 'run':
        run(where, rest)
    sys.path[0] = os.getcwd()                   # as `python -m` has it
    task = serve(where)
    os.chdir(task['directory'])
    os.environ.clear()
    os.environ.update(task['environment'])
    sys.path[0], sys.argv[1:] = task['directory'], task['arguments']
    import runpy                                # what the fork leaves undone ends as in any other process
    runpy.run_module('simclr_jax.main', run_name='__main__', alter_sys=True)
