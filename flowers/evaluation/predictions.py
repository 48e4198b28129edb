"""Predictions under the name that scripts import them by. They are in `flowers.runs`, because a run has saved them."""

from flowers.runs.predictions import Predictions as Predictions
from flowers.runs.predictions import load_predictions as load_predictions
from flowers.runs.predictions import load_run_predictions as load_run_predictions
