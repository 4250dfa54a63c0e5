"""Models, data sets and publishing on the Hugging Face Hub. Only this package accesses the Hub."""

from merganser.hub.datasets import HubFiles, find_parquet
from merganser.hub.models import (
    check_no_url,
    chosen_gguf,
    commit,
    is_hub_id,
    local_folder,
    resolve,
    sha256,
)
from merganser.hub.publishing import (
    Repository,
    account,
    benchmark_results,
    check_name,
    collect,
    look,
    model_index,
    send,
)

__all__ = [
    "HubFiles",
    "Repository",
    "account",
    "benchmark_results",
    "check_name",
    "check_no_url",
    "chosen_gguf",
    "collect",
    "commit",
    "find_parquet",
    "is_hub_id",
    "local_folder",
    "look",
    "model_index",
    "resolve",
    "send",
    "sha256",
]
