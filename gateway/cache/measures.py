"""What the look-up cache counts. Labels are layers, outcomes and kinds: nothing of a patient, a study or a question.

`gateway_cache_lookups_total{layer,outcome}`: layer whole (an answer as it went out), local or redis; outcome hit, miss, stale
(served while it is asked for anew) or stale_if_error. `gateway_cache_loads_total{outcome}`: kept, not_kept, failed, or shared
(another replica had just loaded it). `gateway_cache_purges_total{kind}`, `gateway_cache_refusals_total` (commands that Redis
refused, such as when it is full), `gateway_cache_local_bytes`, `gateway_cache_up` (1 while Redis answers).
"""

from __future__ import annotations

from functools import cache

from gateway.metrics import Counter, Gauge

lookups = Counter("gateway_cache_lookups_total", "Look-ups of an answer", ["layer", "outcome"])
loads = Counter("gateway_cache_loads_total", "Answers asked of a node because the cache had none", ["outcome"])
purges = Counter("gateway_cache_purges_total", "Purges heard, of this replica or another", ["kind"])
refusals = Counter("gateway_cache_refusals_total", "Commands that Redis refused")
local_bytes = Gauge("gateway_cache_local_bytes", "Bytes in the layer within this process", multiprocess_mode="livesum")
up = Gauge("gateway_cache_up", "Whether Redis answers", multiprocess_mode="livemin")

# Found once, as in gateway/metrics.py.
looked_up = cache(lookups.labels)
loaded = cache(loads.labels)
