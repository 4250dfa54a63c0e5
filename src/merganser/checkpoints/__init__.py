"""Checkpoints: tensors listed from headers and read by ranges, with one module per file format.

``protocol`` defines the interface of checkpoints, and ``opening`` opens them. ``training`` reads the shards
of training frameworks, and ``computed`` contains checkpoints whose tensors are computed during reading.
"""

from merganser.checkpoints.formats import open_training as open_training
from merganser.checkpoints.formats import open_weights as open_weights
from merganser.checkpoints.opening import as_numbers as as_numbers
from merganser.checkpoints.opening import open_checkpoint as open_checkpoint
from merganser.checkpoints.protocol import VOCABULARIES as VOCABULARIES
from merganser.checkpoints.protocol import Checkpoint as Checkpoint
from merganser.checkpoints.protocol import Described as Described
from merganser.checkpoints.protocol import Headers as Headers
from merganser.checkpoints.protocol import Stamp as Stamp
from merganser.checkpoints.protocol import Weights as Weights
from merganser.checkpoints.protocol import check_unchanged as check_unchanged
from merganser.checkpoints.sidecar_files import read_config as read_config
from merganser.checkpoints.sidecar_files import read_index as read_index
from merganser.checkpoints.sidecar_files import read_json as read_json
