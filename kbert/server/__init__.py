"""A small server with TensorFlow Serving's API: one event loop, a few compute threads.

`servable` computes one version of a model, `batching` batches the requests of many clients,
`models` manages the versions, `service` answers requests, and `grpc_api` and `rest_api` serve them
over gRPC and REST.
"""
