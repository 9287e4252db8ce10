"""Who asks, why, and may they. It knows no HTTP framework and no node's protocol."""
