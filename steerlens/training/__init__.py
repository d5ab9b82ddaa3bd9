"""Directions found by training, with the model's weights left alone."""

from steerlens.training.directions import TrainedDirections, train_direction, train_directions
from steerlens.training.fitting import TrainingSettings
from steerlens.training.parameters import Slot

__all__ = ["Slot", "TrainedDirections", "TrainingSettings", "train_direction", "train_directions"]
