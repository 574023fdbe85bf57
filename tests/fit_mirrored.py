"""Fits every class under MirroredStrategy on two CPU devices; run by test_fit.py."""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from test_fit import CLASSES, batch_of, compiled

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
reduce = tf.distribute.ReductionToOneDevice()
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduce)
for cls in CLASSES:
    with strategy.scope():
        model = compiled(cls, "mixed_bfloat16")
    features, labels = batch_of(model)
    dataset = tf.data.Dataset.from_tensors((features, labels)).repeat(10)
    losses = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
    name = next(iter(labels))
    same = np.array_equal(loaded(features)[name], model(features)[name])
    print(cls.__name__, losses[1] < losses[0], same, strategy.num_replicas_in_sync)
