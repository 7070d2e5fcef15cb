"""What a worker and its engine agree on: items, answers, faults, where they meet; neither side's own business.

    worker                                            engine process, `python -m udfs.engine`
    client: parcels of items  -- Flight, server -->   scheduler: rounds of parcels, clients in turn
                                                      runner: lanes take micro-batches, model runs them
    client: outputs of items  <-- in its order ----   scheduler: answered parcels

`home` is the directory where they meet, `items` and `messages` are what they send each other, `journal` tells what was
running when an engine died, `faults` what is not to be run again.
"""
