"""Live models of a studio, by name: blends that pages have posted, and models of the folder."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock

from merganser.errors import MerganserError
from merganser.planning import Plan
from merganser.serving.names import Catalogue, Served, UnknownModel
from merganser.studio import recipes
from merganser.studio.library import Library

MOST_BLENDS = 256

MOST_MODELS = 64


class Blends(Catalogue):
    """The models of a studio's server.

    A blend's name is ``blend-`` and the beginning of its plan's digest, so that equal blends of several
    pages are one model. The oldest blends are dropped; requests that run for them continue.

    Args:
        library: the studio's folder, which has the models.
    """

    def __init__(self, library: Library) -> None:
        super().__init__(())
        self._library = library
        self._experts: OrderedDict[str, Served] = OrderedDict()
        self._guard = RLock()

    def add(self, plan: Plan) -> Served:
        """Register the plan of a blend, and return its model."""
        name = f"blend-{plan.digest[:12]}"
        with self._guard:
            known = dict(self.models)
            served = known.pop(name, None) or Served(name, plan)
            known[name] = served
            self.models = dict(list(known.items())[-MOST_BLENDS:])
        return served

    def find(self, name: str) -> Served:
        """Return the blend with a name, or the model at a path below the folder.

        Raises:
            UnknownModel: there is no such model.
            MerganserError: the model cannot be planned.
        """
        with self._guard:
            found = self.models.get(name) or self._experts.get(name)
        if found is not None:
            return found
        if name.startswith("blend-"):
            raise UnknownModel(f"{name[:200]}: is no blend of this server; post its recipe again")
        try:
            served = Served(name, recipes.read_model(name, self._library))
        except MerganserError as error:
            raise UnknownModel(f"there is no model {name[:200]!r} ({error})") from None
        with self._guard:
            served = self._experts.setdefault(name, served)
            while len(self._experts) > MOST_MODELS:
                self._experts.popitem(last=False)
        return served
