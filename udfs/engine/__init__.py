"""The engine: one loaded model on one device, in a process of its own, that every worker of an executor feeds.

    worker                                            engine process, `python -m udfs.engine`
    client: parcels of items  -- Flight, server -->   scheduler: rounds of parcels, clients in turn
                                                      runner: lanes take micro-batches, model runs them
    client: outputs of items  <-- in its order ----   scheduler: answered parcels

`link` is one stream between the two. `process` finds an executor's engine or starts it, and replaces one that died;
`home` is the directory where they meet. `budget` decides how large a micro-batch is, `journal` remembers what was
running when an engine died, `faults` what is not to be run again; `keeper` ends an engine that is not needed any more.
"""
