"""Loads a folder of weights on the JAX backend and saves the outputs: run by test_model.py."""

import pathlib
import sys

import keras
import numpy as np

from kbert.model import BertForPreTraining

assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
folder = pathlib.Path(sys.argv[1])
model = BertForPreTraining.from_pretrained(folder)
features = dict(np.load(folder / "features.npz"))
outputs = model(features)
np.savez(folder / "outputs.npz", **{name: np.asarray(value) for name, value in outputs.items()})
assert "tensorflow" not in sys.modules
