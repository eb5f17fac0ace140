"""Celery workers that answer jobs with the pruned model, and the contract that they share with the service.

`contract`, `ledger`, `settings`, `logs`, `failpoints` and `wakeups` import neither torch nor transformers nor erase, so
the service can import them; everything else in this package may.
"""
