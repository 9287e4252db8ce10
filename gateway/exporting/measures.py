"""What exports count. Labels are outcomes and resource types: nothing of a caller, a job or a patient."""

from __future__ import annotations

from gateway.metrics import Counter, Gauge

exports = Counter("gateway_exports_total", "Exports, by what became of them", ["outcome"])
steps = Counter("gateway_export_steps_total", "Steps of exports, by how they ended", ["outcome"])
lines = Counter("gateway_export_lines_total", "Lines written by exports", ["type"])
unfinished = Gauge("gateway_export_unfinished", "Exports that are not finished", multiprocess_mode="livemax")
size = Gauge("gateway_export_bytes", "Bytes of the lines of all exports that are kept", multiprocess_mode="livemax")
