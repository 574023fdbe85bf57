"""The training step. Its result does not depend on the number of replicas and slices."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from kbert.compression.distillation_objective import Objective
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings import TrainingConfig
    from kbert.train.distribution import Devices
    from kbert.train.optimizer import LAMB, SGD, AdamW, Muon
    from kbert.train.schedule import Schedule

# Dynamic loss scaling of mixed_float16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2),
# with the constants of Keras' LossScaleOptimizer.
INITIAL_SCALE, GROWTH_STEPS = 2.0**15, 2000


class TrainStep:
    """Takes steps: sums gradients over slices and replicas, clips them and applies them.

    The loss of a step is a sum over the global batch, divided by the total weight of the global
    batch, so it does not depend on how the batch is split. Dropout is a function of the seed, the
    step and the position in the global batch, so checkpoints store no random state.

    A step with a non-finite loss or gradient changes no weights. In mixed_float16, the loss is
    multiplied by a scale, so that small gradients do not underflow. If a gradient overflows, the
    scale is halved, down to 1, and the step counts as one of "overflows" instead of "not_finite".
    After 2,000 finite steps in a row, the scale is doubled.

    Args:
        model: the model, created in the scope of the strategy.
        optimizer: the optimizer, created in the same scope and built with the model's trainable
            variables.
        schedule: learning rate as a function of the step.
        objective: computes the loss from sums over the batch.

    Attributes:
        value_names: names of the values that a step returns: the objective's sums over the global
            batch, then "gradient_norm" (before clipping; 0 in skipped steps), "steps" (1),
            "overflows" and "not_finite" (0 or 1).
        loss_scale: the scale of the loss in mixed_float16; None in other precisions.
    """

    value_names: tuple[str, ...]
    loss_scale: keras.Variable | None

    def __init__(
        self,
        model: "PretrainedModel",
        optimizer: "AdamW | LAMB | Muon | SGD",
        schedule: "Schedule",
        devices: "Devices",
        config: "TrainingConfig",
        objective: "Objective",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._schedule = schedule
        self._devices = devices
        self._strategy = devices.strategy
        self._config = config
        self._objective = objective
        self.value_names = (*objective.names, "gradient_norm", "steps", "overflows", "not_finite")
        weights = {id(weight) for weight in self._named_weights().values()}
        self._seeds = [variable for variable in model.variables if id(variable) not in weights]
        self.loss_scale = self._good_steps = None
        if config.precision == "mixed_float16":
            with self._strategy.scope():
                self.loss_scale = keras.Variable(INITIAL_SCALE, trainable=False, name="loss_scale")
                self._good_steps = keras.Variable(
                    0, trainable=False, dtype="int64", name="good_steps"
                )
        self._parts = config.accumulation_steps * self._strategy.num_replicas_in_sync
        self._gradients, self._update = self._summed_gradients, self._guarded_update
        self._vectors = self._embeddings_by_slice
        if devices.jit:
            self._gradients, self._update, self._vectors = (
                tf.function(part, jit_compile=True, autograph=False)
                for part in (self._gradients, self._update, self._vectors)
            )

    def _named_weights(self):
        """Returns the weights of the model and its adapters: dict of name -> Keras variable."""
        named = dict(self.model.named_weights())
        for name, (a, b, _) in self.model.adapters().items():
            named |= {f"{name}/lora_a": a, f"{name}/lora_b": b}
        return named

    def named_variables(self) -> dict[str, keras.Variable]:
        """Returns the variables that a checkpoint stores besides the model's weights, by name.

        They are the state of the optimizer and, if the run has them, the LoRA adapters, the
        matrices that they are added to, and the loss scale.
        """
        weights = self._named_weights()
        names = {id(weight): name for name, weight in weights.items()}
        names = [names[id(variable)] for variable in self.model.trainable_variables]
        named = self.optimizer.named_variables(names)
        for name in self.model.adapters():  # in a checkpoint's weights, adapters are merged
            parts = (weights[name], weights[f"{name}/lora_a"], weights[f"{name}/lora_b"])
            named |= dict(zip((f"{name}/base", f"{name}/a", f"{name}/b"), parts, strict=True))
        if self.loss_scale is not None:
            named |= {"loss_scale/scale": self.loss_scale, "loss_scale/good": self._good_steps}
        return named

    def first_copy(self, variable: keras.Variable) -> tf.Variable:
        """Returns the copy of a Keras variable on the first device of this worker."""
        return self._strategy.experimental_local_results(variable.value)[0]

    @tf.function
    def take(
        self, batches: Iterator[dict[str, tf.Tensor]], step: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Takes several steps in one call.

        `step` (int64) steps were taken before this call, which takes `count` (int32) more. Returns
        the values of each step, (count, len(value_names)) float32, and the seconds spent waiting
        for batches, a float64 scalar. The loss sums are not multiplied by the loss scale, and all
        sums of a "not_finite" step are 0. The seconds are NaN if `deterministic` is set.
        """
        rows = tf.TensorArray(tf.float32, count, element_shape=(len(self.value_names),))
        waited = tf.constant(0.0, tf.float64)
        for i in tf.range(count):
            batch, seconds = self._timed_next(batches, rows.flow)
            waited += seconds
            row = self._strategy.run(self._replica_step, args=(batch, step + tf.cast(i, tf.int64)))
            rows = rows.write(i, self._strategy.experimental_local_results(row)[0])
        return rows.stack(), waited

    @tf.autograph.experimental.do_not_convert
    def _timed_next(self, batches, before):
        """Waits for the tensor `before`; returns the next batch and the seconds it took to get."""
        if self._config.deterministic:  # in which case tf.timestamp raises an error
            return next(batches), tf.constant(math.nan, tf.float64)
        with tf.control_dependencies([before]):
            begin = tf.timestamp()
        with tf.control_dependencies([begin]):
            batch = next(batches)
        parts = map(self._strategy.experimental_local_results, batch.values())
        with tf.control_dependencies([tensor for part in parts for tensor in part]):
            return batch, tf.timestamp() - begin

    @tf.autograph.experimental.do_not_convert
    def _replica_step(self, features, step):
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        number = tf.get_static_value(replica)  # None on TPUs, where all replicas run one program
        replica = replica if number is None else int(number)
        add_up = tf.distribute.ReduceOp.SUM
        count = context.all_reduce(add_up, self._objective.count(features))
        if self._objective.compares_examples and self._parts > 1:
            features = features | self._label_features(features, step, replica)
        part = self._gradients(features, count, step, replica)
        sums, gradients = context.all_reduce(add_up, part)
        return self._update(sums, gradients, step, replica)

    def _label_features(self, features, step, replica):
        """Returns a replica's part of the objective's `label_features` of the global batch."""
        vectors = self._vectors(features, step, replica)
        whole = {
            name: self._gather_replicas(features[name], replica)
            for name in ("labels", "label_weights")
        }
        result = self._objective.label_features(self._gather_replicas(vectors, replica), whole)
        rows = tf.shape(vectors)[0]
        return {name: x[replica * rows : (replica + 1) * rows] for name, x in result.items()}

    def _gather_replicas(self, part, replica):
        """Concatenates the values of all replicas, in the order of the global batch."""
        context = tf.distribute.get_replica_context()
        shape = tf.concat([[self._strategy.num_replicas_in_sync], tf.shape(part)], 0)
        parts = tf.scatter_nd([[replica]], part[None], shape)  # 0 for the other replicas
        parts = context.all_reduce(tf.distribute.ReduceOp.SUM, parts)
        return tf.reshape(parts, (-1, *part.shape[1:]))

    def _embeddings_by_slice(self, features, step, replica):
        """Returns the embeddings of a replica's part of the batch, slice by slice."""
        slices = self._config.accumulation_steps
        sliced = _sliced(features, slices)

        def vectors_of(i):
            share = {name: value[i] for name, value in sliced.items()}
            with self._seed_scope(step, replica * slices + i):
                return self.model(share, training=True)["embedding"]

        vectors = tf.map_fn(
            vectors_of, tf.range(slices), fn_output_signature=tf.float32, parallel_iterations=1
        )
        return tf.reshape(vectors, (-1, *vectors.shape[2:]))

    def _summed_gradients(self, features, count, step, replica):
        """Returns the sums and the gradients of a replica's batch, computed slice by slice.

        The gradients are multiplied by the loss scale.
        """
        slices = self._config.accumulation_steps
        if slices == 1:
            return self._slice_gradients(features, count, step, replica)
        features = _sliced(features, slices)

        def add_slice(i, totals):
            share = {name: value[i] for name, value in features.items()}
            part = self._slice_gradients(share, count, step, replica * slices + i)
            return i + 1, tf.nest.map_structure(tf.add, totals, part)

        zeros = (
            {name: tf.zeros(()) for name in self._objective.names},
            [tf.zeros(variable.shape) for variable in self.model.trainable_variables],
        )
        _, totals = tf.while_loop(
            lambda i, _: i < slices, add_slice, (0, zeros), parallel_iterations=1
        )
        return totals

    def _seed_scope(self, step, slice_number):
        """Returns a scope with the dropout seeds of a step and a slice of the global batch."""
        # Without `alg`, XLA and TPUs would use another algorithm.
        alg = tf.random.Algorithm.PHILOX
        seed = tf.random.experimental.stateless_fold_in((self._config.seed, 0), step, alg)
        keys = tf.random.stateless_uniform(
            (len(self._seeds),), seed, minval=0, maxval=2**31 - 1, dtype=tf.int32, alg=alg
        )
        # A seed is (key of the layer, slice of the global batch); see `fused.dropout_keep_mask`.
        seeds = tf.stack([keys, tf.fill(tf.shape(keys), -1 - slice_number)], axis=1)
        return keras.StatelessScope(zip(self._seeds, tf.unstack(seeds), strict=True))

    def _slice_gradients(self, features, count, step, slice_number):
        with self._seed_scope(step, slice_number):
            with tf.GradientTape() as tape:
                sums = self._objective.sums(self.model(features, training=True), features)
                loss = self._objective.loss(sums, count)
                if self.loss_scale is not None:
                    loss *= self.loss_scale.value
            weights = [variable.value for variable in self.model.trainable_variables]
            gradients = tape.gradient(loss, weights)
        return sums, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _guarded_update(self, sums, gradients, step, replica):
        """Applies the global batch's gradients if they are finite; returns the step's values."""

        def local_copy(variable):
            return self._devices.local_copy(variable, replica if isinstance(replica, int) else None)

        if self.loss_scale is not None:
            scale = local_copy(self.loss_scale).read_value()
            gradients = [gradient / scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        sums = tf.stack([sums[name] for name in self._objective.names])
        finite_loss = tf.reduce_all(tf.math.is_finite(sums))
        finite = finite_loss & tf.math.is_finite(norm)
        overflow = tf.constant(False)
        if self.loss_scale is not None:
            overflow = finite_loss & ~finite & (scale > 1)

        def update():
            factor = self._config.clip_norm / tf.maximum(norm, self._config.clip_norm)
            self.optimizer.apply_on_replica(gradients, factor, self._schedule(step), local_copy)
            if self.loss_scale is not None:
                good = local_copy(self._good_steps).read_value() + 1
                grow = good >= GROWTH_STEPS
                local_copy(self.loss_scale).assign(tf.where(grow, 2 * scale, scale))
                local_copy(self._good_steps).assign(tf.where(grow, tf.zeros_like(good), good))
            return norm

        def skip():
            if self.loss_scale is not None:
                local_copy(self.loss_scale).assign(tf.where(overflow, scale / 2, scale))
                local_copy(self._good_steps).assign(0)
            return tf.zeros_like(norm)

        norm = tf.cond(finite, update, skip)
        sums = tf.where(finite | overflow, sums, tf.zeros_like(sums))
        flags = [tf.constant(True), overflow, ~(finite | overflow)]
        return tf.concat([sums, [norm], tf.cast(tf.stack(flags), tf.float32)], 0)


def _sliced(features, slices):
    """Splits the rows of features into slices: dict of name -> (slices, rows per slice, ...)."""
    return {
        name: tf.reshape(value, tf.concat([[slices, -1], tf.shape(value)[1:]], 0))
        for name, value in features.items()
    }
