"""Extension of vLLM's workers that replaces weights; vLLM imports this module by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from merganser import system
from merganser.evaluation import vllm_feed

if TYPE_CHECKING:
    import torch


class Loading:
    """Methods of a worker that replace its weights; vLLM adds this class to the worker's bases.

    Method names begin with ``merganser_``, since vLLM rejects names that its workers already have.
    """

    get_model: Any
    reload_weights: Any

    def merganser_receive(self, address: str, key: str) -> list[str]:
        """Replace the model's weights by those of a :class:`vllm_feed.Feed` in another process.

        Returns:
            See :meth:`merganser_load`.
        """
        return self.merganser_load(vllm_feed.receive(address, key))

    def merganser_load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
        """Replace the model's weights.

        Args:
            tensors: pairs of name and tensor, for all tensors, named as in files and ordered by layer.

        Returns:
            Names of the model's parameters that no tensor set, and of layers that are partly set.
        """
        model = self.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        loaded: set[str] = set()
        incomplete: set[str] = set()
        load_weights = model.load_weights

        def load(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
            names = load_weights(weights)
            loaded.update(names or wanted)
            incomplete.update(_incomplete(model))
            return names

        model.load_weights = load
        try:
            self.reload_weights(weights_iterator=tensors)
        finally:
            del model.load_weights
        _pack_tied(model)
        system.give_back_memory()  # glibc retains freed memory of many sizes, as much as a model
        return sorted((wanted - loaded) | incomplete)


def _incomplete(model: torch.nn.Module) -> list[str]:
    """Names of layers for which only some tensors were loaded, before vLLM fills the rest arbitrarily.

    vLLM joins several tensors in one layer, such as the gate and up projections. Layers with a vocabulary
    are padded and never filled completely, so they are excluded.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    names = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if info.can_load() and 0 < info.load_numel < (info.load_numel_total or 0):
            names += [] if hasattr(layer, "num_embeddings_padded") else [name]
    return names


def _pack_tied(model: torch.nn.Module) -> None:
    """Renew the packed copies of tied weights.

    vLLM's CPU build computes with a packed copy of a layer's weight. A reload does not renew the copy of a
    tied head, since no loaded tensor has the head's name.
    """
    seen: set[int] = set()
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is None:
            continue
        method: Any = getattr(layer, "quant_method", None)
        if id(weight) in seen and hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(layer)
        seen.add(id(weight))
