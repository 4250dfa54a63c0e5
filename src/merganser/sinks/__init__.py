"""Sinks take the output of a merge: a safetensors folder, a live model, a state dict, or nothing.

The engine hands a sink finished ranges of output tensors, in any order and from any thread.
"""

from merganser.sinks.memory import LiveSink as LiveSink
from merganser.sinks.memory import ModuleSink as ModuleSink
from merganser.sinks.memory import StateDictSink as StateDictSink
from merganser.sinks.memory import StreamSink as StreamSink
from merganser.sinks.protocol import DigestSink as DigestSink
from merganser.sinks.protocol import NullSink as NullSink
from merganser.sinks.protocol import Sink as Sink
from merganser.sinks.safetensors import WINDOW as WINDOW
from merganser.sinks.safetensors import Extents as Extents
from merganser.sinks.safetensors import SafetensorsSink as SafetensorsSink
