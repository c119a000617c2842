"""TensorFlow with its weights on parameter servers: a chief tells the workers what to compute.

    wherry train --image … --preprocessing ../quickstart-network/preprocessing.py --algorithm keras_servers.py \
        --dataset digits --distributed chief=1,ps=1,workers=2

Workers and servers run `serve` until the chief, which alone runs `train`, is done; then wherry stops them.
"""

from pathlib import Path

import tensorflow as tf


def serve() -> None:
    """Do what the chief asks for, until this is stopped."""
    told = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server = tf.distribute.Server(
        told.cluster_spec(), job_name=told.task_type, task_index=told.task_id, protocol="grpc"
    )
    server.join()


def train(data: tuple, params: dict, outputs: Path) -> dict:
    """Fit and evaluate over the workers, each step on whichever is free."""
    told = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    strategy = tf.distribute.ParameterServerStrategy(told)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    (images, digits), (test_images, test_digits) = data
    batch, epochs = int(params.get("batch", 64)), int(params.get("epochs", 10))
    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Input((64,)),
                tf.keras.layers.Dense(64, activation="relu"),
                tf.keras.layers.Dense(10),
            ]
        )
        optimizer = tf.keras.optimizers.Adam(0.005)
        optimizer.build(model.trainable_variables)

    def batches() -> tf.data.Dataset:
        learning = tf.data.Dataset.from_tensor_slices((images.astype("float32"), digits))
        return learning.shuffle(len(images)).repeat().batch(batch)

    @tf.function
    def step(iterator: tf.data.Iterator) -> tf.Tensor:
        def replica(chosen: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                scores = model(chosen, training=True)
                lost = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=wanted, logits=scores))
            optimizer.apply_gradients(
                zip(tape.gradient(lost, model.trainable_variables), model.trainable_variables, strict=True)
            )
            return lost

        return strategy.reduce(tf.distribute.ReduceOp.MEAN, strategy.run(replica, args=next(iterator)), axis=None)

    iterator = iter(coordinator.create_per_worker_dataset(batches))
    losses = []
    for epoch in range(epochs):
        lost = [coordinator.schedule(step, args=(iterator,)) for _ in range(len(images) // batch)]
        coordinator.join()
        losses.append(float(sum(one.fetch() for one in lost) / len(lost)))
        print(f"::progress {(epoch + 1) / epochs:.3f}::epoch {epoch + 1} of {epochs}", flush=True)
    found = model(test_images.astype("float32")).numpy().argmax(1)
    model.save(outputs / "model.keras")
    return {"loss": losses, "test_accuracy": float((found == test_digits).mean())}
