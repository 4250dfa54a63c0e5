"""Tensors that an output leaves out, or takes from some of the models only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from merganser.planning.groups import list_of, summary
from merganser.planning.inputs import Inputs


@dataclass(slots=True)
class Omissions:
    """What a layout leaves out or does not merge, by the names of tensors.

    Attributes:
        tied_away: heads that are left out because they are the embedding in every model.
        partial: tensors that some models lack, by the indices of these models.
        beyond: tensors beyond the layers that ``config.json`` counts, by the index of their model.
        taken: modules that the recipe does not name, copied from the donor.
        left_out: tensors that are not in every model, with ``tensor_names="intersection"``.
        unmerged: tensors of the donor, whose config the output takes, that no merged model has.
    """

    tied_away: set[str] = field(default_factory=set)
    partial: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    beyond: dict[int, list[str]] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    unmerged: list[str] = field(default_factory=list)

    def warnings(self, inputs: Inputs, alone: Mapping[str, int]) -> list[str]:
        """Warnings about omitted and unmerged tensors.

        Args:
            inputs: the plan's inputs.
            alone: for each tensor that too few models have for a merge, the source it is copied from.
        """
        sources, donor = inputs.sources, inputs.sources[inputs.donor].reference
        lines = [
            f"{name} is left out: in every model it is the embedding, bit for bit"
            for name in sorted(self.tied_away)
        ]
        for absent, partial in self.partial.items():
            lacking = list_of(str(sources[source].reference) for source in absent)
            verb = "lacks" if len(absent) == 1 else "lack"
            for source in dict.fromkeys(alone.get(name) for name in partial):
                names = [name for name in partial if alone.get(name) == source]
                them = "it" if len(names) == 1 else "them"
                lines.append(
                    f"{lacking} {verb} {summary(names)}: "
                    + (
                        f"merged from the models that have {them}"
                        if source is None
                        else f"copied unchanged from {sources[source].reference}"
                    )
                    + (
                        f"; config.json is that of {donor}, and may not know {them}"
                        if inputs.donor in absent
                        else ""
                    )
                )
        for source, names in self.beyond.items():
            lines.append(
                f"{sources[source].reference}: {summary(names)} beyond the layers that "
                "config.json counts (for predicting further tokens) cannot be stacked, and are left out"
            )
        if self.left_out:
            verb = "is" if len(self.left_out) == 1 else "are"
            lines.append(f"{summary(self.left_out)} {verb} not in every model, and left out")
        if self.unmerged:
            lines.append(
                f"{summary(self.unmerged)} of {donor}, whose config "
                "the output takes, is left out: none of the models merged there has it"
            )
        if self.taken:
            lines.append(
                f"modules: does not name {list_of(self.taken)}: copied unchanged from "
                f"{donor} (MergeKit would leave "
                f"{'it' if len(self.taken) == 1 else 'them'} out)"
            )
        return lines
