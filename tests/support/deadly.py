"""Work that kills its process, as the kernel does for its memory, and a source with a file that does."""

import os
import signal


def twice(item):
    """The double of an item."""
    return 2 * item


def deadly(items, item):
    """The double of an item, unless it is one of `items`."""
    if item in items:
        os.kill(os.getpid(), signal.SIGKILL)
    return twice(item)


def deadly_once(mark, item):
    """As `twice`, but the first worker that comes to item 3 dies; `mark` is a file that says so."""
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return twice(item)


class DeadlySource:
    """A source, where reading some files kills the process half way."""

    def __init__(self, source, deadly):
        self._source, self._deadly = source, deadly
        self.files, self.inputs = source.files, source.inputs

    def scan(self, file, counts):
        """See `Source`."""
        for batch in self._source.scan(file, counts):
            yield batch
            if self._deadly in file:
                os.kill(os.getpid(), signal.SIGKILL)

    def read(self, file, offset):
        """See `Source`."""
        return self._source.read(file, offset)
