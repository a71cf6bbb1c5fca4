"""The main loop of a worker process.

Importing this module imports nothing large, so that a new process watches its parent and ignores Ctrl-C
before it imports PyTorch.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

from talkinghead_lab.errors import OutputError

# A terminal or a job scheduler sends these to every process of a command. The parent alone acts on them.
PARENT_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def serve(connection: Connection, gpu: str | None, workers: int) -> None:
    """Run each job received and send its outcome: None, or an error that does not belong to the job alone.

    The networks of a request that is received are loaded while no job has arrived.

    Args:
        connection: to the parent; the process ends when it is closed.
        gpu: the only GPU, as CUDA_VISIBLE_DEVICES names it; None: the CPU.
        workers: number of workers, which share the cores if there is no GPU.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in PARENT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENT_SIGNALS)  # the parent blocked them for the start
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu

    import torch
    from tqdm import tqdm

    from talkinghead_lab.params import GenerationParams
    from talkinghead_lab.workers.worker import Worker

    tqdm.set_lock(threading.RLock())  # a killed process would leak the semaphore of the default lock
    if gpu is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    worker = Worker()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        if isinstance(job, GenerationParams):
            worker.begin_to_load(job)
            continue
        try:
            job.run(worker)
        except OutputError as error:
            connection.send(error)
        else:
            connection.send(None)


def _end_with_parent() -> None:
    """End this process, also in the middle of a job, when its parent has ended or was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
