"""How long a request to the Hub may stay unanswered: huggingface_hub's client would wait for ever.

The limit is set on the client that there is. `huggingface_hub.set_client_factory` would replace a factory that a user
has set (with a proxy, say), and there is no way to ask for the present one and build on it.
"""

from __future__ import annotations

from typing import Final

from huggingface_hub import constants, get_session

LONGEST_WAIT: Final = 60.0


def longest_wait() -> float:
    """Seconds without an answer, or a part of one, that end a request; HF_HUB_DOWNLOAD_TIMEOUT where it is more."""
    return max(LONGEST_WAIT, constants.HF_HUB_DOWNLOAD_TIMEOUT)


def limit_waiting() -> None:
    """Limit the waiting of the client that all of huggingface_hub shares, unless it has a limit.

    It makes itself a new client after a connection that failed, so this is said before each piece of work.
    """
    client = get_session()
    if not any(client.timeout.as_dict().values()):
        client.timeout = longest_wait()
