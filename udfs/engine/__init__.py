"""The engine's process: one loaded model on one device, that every worker of an executor feeds; nothing of a worker's.

`assembly` puts it together: `model` (or `udfs.generation`) runs micro-batches that `scheduler` cuts from the parcels of
all clients, by the `budget` that was measured; `runner` and `writing` are its lanes, `server` its door, and `keeper`
ends it when it is not needed any more. `forward` has the engine halves of the tasks.
"""
