"""Models, data sets and publishing on the Hugging Face Hub. Only this package accesses the Hub.

Most commands need models alone; ``datasets`` and ``publishing`` are imported where they are used.
"""

from merganser.hub.models import (
    check_no_url,
    chosen_gguf,
    commit,
    is_hub_id,
    local_folder,
    resolve,
    sha256,
)

__all__ = [
    "check_no_url",
    "chosen_gguf",
    "commit",
    "is_hub_id",
    "local_folder",
    "resolve",
    "sha256",
]
