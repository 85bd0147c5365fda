"""Surgetank's engine: the path of a send, and where each stage lives.

    stage     kind   module            what it turns into what
    consume   shell  engine.consume    a tier's records -> arrivals, inside the tier's budget
    decode    pure   engine.decode     bytes -> Send, or a named reason
    admit     pure   engine.admit      Send -> addressed, checked, timed; or held, or a named reason
    schedule  pure   ext.schedule      what may go now, in which order
    batch     pure   ext.schedule      merged into platform-size batches
    deliver   shell  engine.deliver    one batch -> one platform call -> its result
    settle    pure   engine.settle     result -> ended, or again at T
    commit    shell  engine.commit     ended and told -> committed positions

``ext.intake`` decodes and admits sends of the common kind, as engine.decode and engine.admit would.
``engine.dispatch`` is the shell around schedule, batch and settle; ``engine.record`` writes receipts between settle
and commit; ``engine.pipeline`` wires it all.
"""

__version__ = "0.1.0"
