"""What Merganser adds to vLLM's workers; vLLM imports this module by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from merganser import system
from merganser.evaluation import vllm_feed

if TYPE_CHECKING:
    import torch


class Loading:
    """A worker's part in a change of weights: vLLM makes the worker a subclass of this class.

    Names begin with ``merganser_``, since vLLM refuses names that its workers have.
    """

    get_model: Any
    reload_weights: Any

    def merganser_receive(self, address: str, key: str) -> list[str]:
        """Replace the model's weights by those of a feed in another process.

        Returns:
            As :meth:`merganser_load`.
        """
        return self.merganser_load(vllm_feed.receive(address, key))

    def merganser_load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
        """Replace the model's weights.

        Args:
            tensors: all of them under the names that files have, from one layer after the other.

        Returns:
            Parameters of the model that were not among them, and layers that lack a part of theirs.
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
        system.give_back_memory()  # of the tensors' many sizes, glibc would keep a model's worth
        return sorted((wanted - loaded) | incomplete)


def _incomplete(model: torch.nn.Module) -> list[str]:
    """Layers of which only some tensors came, before vLLM fills them up with anything.

    vLLM joins several tensors in one layer, such as a gate and its projection. Vocabularies are
    padded, so their layers are never full.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    found = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if info.can_load() and 0 < info.load_numel < (info.load_numel_total or 0):
            found += [] if hasattr(layer, "num_embeddings_padded") else [name]
    return found


def _pack_tied(model: torch.nn.Module) -> None:
    """Make copies of tied weights anew.

    vLLM's CPU build computes with a packed copy of a layer's weight. After a reload the copy of a
    tied head is the old one, since none of the loaded tensors has the head's name.
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
