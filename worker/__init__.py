"""Celery workers that answer jobs with the pruned model, and the contract that they share with the service.

`worker.contract`, `worker.ledger` and `worker.settings` import neither torch nor transformers nor erase, so the
service can import them; everything else in this package may.
"""
