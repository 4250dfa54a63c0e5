"""Experiment trackers: trackio, Weights & Biases and MLflow."""

from merganser.tracking.following import Following as Following
from merganser.tracking.following import follow as follow
from merganser.tracking.tracker import Run as Run
from merganser.tracking.tracker import Track as Track
from merganser.tracking.tracker import Tracker as Tracker
from merganser.tracking.tracker import TrackerName as TrackerName
from merganser.tracking.tracker import choose as choose
