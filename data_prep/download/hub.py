"""Files on the Hugging Face hub: their URL at one commit, length and checksum.

Only asked for here: huggingface_hub keeps no part of a download that was stopped (it removes it),
and these files have 9 GB; transfer.py reads them. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count.
"""

from __future__ import annotations

import os
import re
import time

from cjepa_dist.data.format.storage import RETRYABLE_STATUS, RetryPolicy
from cjepa_dist.errors import UserError
from data_prep.download.transfer import Source, Unreachable


def find_on_hub(hub: dict[str, str], retry: RetryPolicy) -> Source:
    """Where a file of a hub's repository is now. Raises Unreachable, saying why."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            "files on the Hugging Face hub need huggingface_hub: pip install 'cjepa-dist[download]'"
        ) from None

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None

    def address(revision: str) -> str:
        return huggingface_hub.hf_hub_url(
            hub["repo"],
            hub["file"],
            repo_type=hub.get("type", "model"),
            revision=revision,
            endpoint=endpoint,
        )

    token = huggingface_hub.get_token()
    url, failures = address(hub.get("revision", "main")), 0
    while True:
        try:
            found = huggingface_hub.get_hf_file_metadata(
                url, token=token or False, timeout=retry.timeout
            )
            break
        except Exception as error:  # of its HTTP library, which differs between its versions
            code = getattr(getattr(error, "response", None), "status_code", None)
            failures += 1
            passes = code in RETRYABLE_STATUS or (code is None and "Offline" not in repr(error))
            if passes and failures < retry.max_attempts:
                time.sleep(retry.initial_delay * 2 ** (failures - 1))
                continue
            login = "; set HF_TOKEN to a token that may read it" if code in (401, 403) else ""
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise Unreachable(f"{url} cannot be read ({reason}){login}") from error
    digest = found.etag if re.fullmatch("[0-9a-f]{64}", found.etag or "") else None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if found.commit_hash:
        url = address(found.commit_hash)
    return Source(url, headers, found.size, digest)
