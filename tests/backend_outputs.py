"""Loads a folder of weights on another backend and saves the outputs: run by test_model.py."""

import pathlib
import sys

import keras
import numpy as np

from kbert.model import BertForPreTraining

folder = pathlib.Path(sys.argv[1])
model = BertForPreTraining.from_pretrained(folder)
features = dict(np.load(folder / "features.npz"))
outputs = model(features)
model.bert.encoder.remat = True
again = model(features, training=True)  # the folder's config has no dropout
outputs |= {f"remat_{name}": value for name, value in again.items()}
np.savez(
    folder / "outputs.npz",
    **{name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()},
)
assert keras.backend.backend() != "tensorflow" and "tensorflow" not in sys.modules
