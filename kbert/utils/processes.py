"""Worker processes: none outlives its program."""

import multiprocessing
import os
import threading


def end_with_the_program():
    """Has this process, one of multiprocessing's, end as soon as the one that started it is gone.

    A pool's worker whose program was killed would wait for work for ever.
    """
    program = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=[program], daemon=True).start()


def _end_after(process):
    process.join()
    os._exit(1)
