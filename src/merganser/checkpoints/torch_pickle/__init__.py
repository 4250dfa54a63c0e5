"""Read PyTorch's files (``.pt``, ``.pth``, ``.bin``) without PyTorch and without executing code."""

from merganser.checkpoints.torch_pickle.archive import MAX_DIRECTORY as MAX_DIRECTORY
from merganser.checkpoints.torch_pickle.listed_names import GETATTR as GETATTR
from merganser.checkpoints.torch_pickle.listed_names import MEMORY_FORMATS as MEMORY_FORMATS
from merganser.checkpoints.torch_pickle.listed_names import TENSORS as TENSORS
from merganser.checkpoints.torch_pickle.listed_names import sizes_of as sizes_of
from merganser.checkpoints.torch_pickle.stand_ins import MALFORMED as MALFORMED
from merganser.checkpoints.torch_pickle.stand_ins import Dictionary as Dictionary
from merganser.checkpoints.torch_pickle.stand_ins import Function as Function
from merganser.checkpoints.torch_pickle.stand_ins import Names as Names
from merganser.checkpoints.torch_pickle.stand_ins import PickledTensor as PickledTensor
from merganser.checkpoints.torch_pickle.stand_ins import Record as Record
from merganser.checkpoints.torch_pickle.stand_ins import enumeration as enumeration
from merganser.checkpoints.torch_pickle.stand_ins import record as record
from merganser.checkpoints.torch_pickle.unpickling import MAX_PICKLE as MAX_PICKLE
from merganser.checkpoints.torch_pickle.unpickling import MAX_STEPS as MAX_STEPS
from merganser.checkpoints.torch_pickle.unpickling import load as load
from merganser.checkpoints.torch_pickle.unpickling import unpickle as unpickle
