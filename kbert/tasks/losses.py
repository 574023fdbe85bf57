"""Losses of the tasks, for training and for distillation."""

import tensorflow as tf


def choice_losses(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the cross-entropy in nats, and 1 where the argmax is the label, 0 elsewhere.

    Args:
        logits: (..., C) float32.
        labels: (...) int.

    Returns:
        Two (...) float32 tensors.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    right = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
    return losses, tf.cast(right, tf.float32)


def soft_losses(logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns the distillation losses T^2 KL(teacher || student), (...) float32, in nats.

    The logits of both models are divided by the temperature T. The factor T^2 keeps the gradients
    as large as with hard labels (Hinton et al. 2015, arXiv:1503.02531, section 2). The paper uses
    the cross-entropy, which differs by the teacher's entropy and has the same gradients.

    Args:
        logits, teacher_logits: (..., C) float32.
        temperature: the temperature T.
    """
    student, teacher = (tf.nn.log_softmax(x / temperature) for x in (logits, teacher_logits))
    return temperature**2 * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1)
