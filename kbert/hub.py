"""Keras 3 layers that load exports of `kbert.export --format=tf_hub`.

    import kbert.hub  # `import kbert` suffices to load a saved model

    text = keras.Input((), dtype="string")
    features = kbert.hub.PreprocessLayer("models/bert/preprocess")(text)
    pooled = kbert.hub.BertLayer("models/bert/encoder")(features)["pooled_output"]
    model = keras.Model(text, keras.layers.Dense(2)(pooled))

The layers also load other SavedModels with TF Hub's common text API. In tf_keras, use
`tensorflow_hub.KerasLayer` instead.
"""

import os
import pathlib

import keras
import tensorflow as tf
import tensorflow_text  # noqa: F401 - the ops of the preprocessor

from kbert.errors import UserError


class _SavedLayer(keras.layers.Layer):
    """A layer that calls a SavedModel; its weights are the variables of the SavedModel."""

    handle: str

    def __init__(
        self, handle: str | os.PathLike[str], trainable: bool = True, **kwargs: object
    ) -> None:
        super().__init__(trainable=trainable, **kwargs)
        self.handle = str(handle)
        if not (pathlib.Path(handle) / "saved_model.pb").is_file():
            raise UserError(
                f"{handle} is not a SavedModel. Create one: python -m kbert.export --format=tf_hub"
            )
        self._loaded = tf.saved_model.load(self.handle)
        trainable_ids = {id(v) for v in getattr(self._loaded, "trainable_variables", ())}
        for variable in getattr(self._loaded, "variables", ()):
            # Wrapped, not copied, so that training updates the variables of the loaded functions.
            name = variable.name.split(":")[0].replace("/", "_")
            dtype = variable.dtype.name
            is_trainable = id(variable) in trainable_ids
            weight = keras.Variable(variable, trainable=is_trainable, dtype=dtype, name=name)
            self._track_variable(weight)
        self.built = True

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "handle": self.handle}


@keras.saving.register_keras_serializable("kbert")
class PreprocessLayer(_SavedLayer):
    """Converts text to the inputs of `BertLayer`.

    Args:
        handle: folder of the exported preprocessor. A saved model that contains this layer stores
            only the path, so the folder must exist when the model is loaded.

    Call arguments:
        inputs: (B,) string.

    Returns, when called:
        dict of `input_word_ids`, `input_mask` and `input_type_ids`, (B, L) int32 each.

    Raises:
        UserError: `handle` is not the folder of a SavedModel.
    """

    def __init__(
        self, handle: str | os.PathLike[str], trainable: bool = False, **kwargs: object
    ) -> None:
        super().__init__(handle, trainable, **kwargs)

    def call(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._loaded(inputs)


@keras.saving.register_keras_serializable("kbert")
class BertLayer(_SavedLayer):
    """An exported encoder, which can be fine-tuned.

    Dropout is applied only if `trainable` is True and the layer is called with `training=True`.

    Args:
        handle: folder of the exported encoder. A saved model that contains this layer stores the
            weights, but only the path of the graph, so the folder must exist when the model is
            loaded.
        trainable: whether the weights are trainable.

    Call arguments:
        inputs: dict of `input_word_ids`, `input_mask` and `input_type_ids`, (B, L) int32 each.

    Returns, when called:
        dict of float32 tensors: `pooled_output` (B, D), `sequence_output` (B, L, D),
        `encoder_outputs`, a list of N tensors (B, L, D), and `default`, which is `pooled_output`.

    Raises:
        UserError: `handle` is not the folder of a SavedModel.
    """

    def call(
        self, inputs: dict[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor | list[tf.Tensor]]:
        return self._loaded(inputs, training=bool(training and self.trainable))
