"""Whether the Hugging Face hub answers; data and weights are chosen by it."""

from __future__ import annotations

import threading
from functools import cache

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

from bert_toolkit.processes import is_distributed, rank

HUB_MODEL = "google-bert/bert-base-uncased"
HUB_TIMEOUT = 3.0
"""Seconds after which a hub that has not answered counts as absent: the libraries' own retries take 26."""


@cache
def hub_answers(timeout: float = HUB_TIMEOUT) -> bool:
    """Return whether the Hugging Face hub can be reached, found out once per process and within `timeout` seconds.

    Asks for the head of one small file, so that a proxy or a log-in page that answers for everything does not count.
    Follows huggingface_hub's own settings: HF_ENDPOINT, HF_HUB_OFFLINE, tokens and proxies. In a distributed run the
    first process asks and tells the others, so that all use the same data: every process must call it.

    Args:
        timeout: Seconds for name lookup, connection and answer together.

    Returns:
        The answer, the same on every process.
    """
    answer = [rank() > 0 or _ask_hub(timeout)]
    if is_distributed():
        torch.distributed.broadcast_object_list(answer, src=0)
    return answer[0]


def _ask_hub(timeout: float) -> bool:
    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            found = get_hf_file_metadata(hf_hub_url(HUB_MODEL, "config.json"), timeout=timeout)
        except Exception:  # whatever went wrong, the hub did not answer
            return
        if found.commit_hash is not None:
            answered.set()

    # A thread, as no setting of an HTTP client limits the time of a name lookup
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()
