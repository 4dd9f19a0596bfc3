"""A worker process: reads the dataset, then stacks to advance, from its driver's pipe; started by `executors.local`."""

from __future__ import annotations

import os
import signal
import sys
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
    tune_process()
    try:
        dataset = receive(sys.stdin.buffer)
        while True:
            stack, goal, reference, deadline = receive(sys.stdin.buffer)
            try:
                stop.deadline = deadline
                answer = advance_if_it_fits(stack, dataset, goal, reference=reference, stop=stop)
            except Exception:
                send(answers, packed_bytes("A worker failed.\n" + traceback.format_exc()))
                continue
            send(answers, packed_bytes(answer))
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
