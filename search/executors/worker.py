"""A worker process: reads the dataset, then stacks to advance, from its driver's pipe; started by `executors.local`."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import traceback

import torch

from mtl_bento_search.executors.local import STOP_SIGNAL, Stopper, advance_if_it_fits, packed_bytes, receive, send
from mtl_bento_search.tuning import tune_process


def main() -> None:
    """Advance stacks until the driver closes the pipe."""
    # Answers leave through a copy of stdout; whatever prints goes to stderr.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    stop = Stopper()
    signal.signal(STOP_SIGNAL, lambda *_: stop.now())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [STOP_SIGNAL])  # the driver held it back until here
    tune_process()
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(messages,), daemon=True).start()
    dataset = pickle.loads(messages.get())
    while True:
        message = pickle.loads(messages.get())
        if callable(message):  # a change of the dataset, such as what trees say of the rows
            dataset = message(dataset)
            continue
        stack, goal, reference, deadline = message
        try:
            stop.deadline = deadline
            answer = packed_bytes(advance_if_it_fits(stack, dataset, goal, reference=reference, stop=stop))
        except Exception:
            answer = packed_bytes("A worker failed.\n" + traceback.format_exc())
        with contextlib.suppress(BrokenPipeError):  # the driver is gone: `listen` ends the process
            send(answers, answer)


def listen(messages: queue.SimpleQueue[bytes]) -> None:
    """Pass on what the driver sends; where it is gone, end the process at once, in the middle of whatever it does."""
    try:
        while True:
            messages.put(receive(sys.stdin.buffer))
    except EOFError:
        os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at an ordinary end Python would wait for stdin, which `listen` reads
