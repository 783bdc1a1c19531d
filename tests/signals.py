"""A writer that sends a signal in the middle of a run: `--config.log.writers=('tests.signals:Send',)`."""

import os
import re
import subprocess


class Send:
    """Sends once, in a run from its beginning, what SIGNAL in the environment says, as in '9 5' or '15 5 1'.

    That is: the number of the signal, the step of whose numbers it follows, and the number of the process
    that gets it where the run has several; the writer is in process 0.
    """

    def __init__(self, workdir, *, start_step, config):
        self._number, self._step, *self._process = map(int, os.environ['SIGNAL'].split())
        self._waits = start_step == 0

    def write(self, step, metrics):
        if self._waits and step >= self._step:
            self._waits = False
            os.kill(self._pid(), self._number)

    def _pid(self):
        if not self._process:
            return os.getpid()
        listing = subprocess.run(['ps', '-Aww', '-o', 'pid=', '-o', 'ppid=', '-o', 'args='], text=True,
                                 check=True, stdout=subprocess.PIPE).stdout
        line = rf'^ *(\d+) +{os.getppid()} .*--process_id={self._process[0]}\b'        # of the same launcher
        return int(re.search(line, listing, re.MULTILINE)[1])

    def note(self, text): ...

    def image(self, name, array): ...
