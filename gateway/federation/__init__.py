"""Many nodes, one answer. It knows no HTTP, no caller and no privacy view; it raises nothing but gateway.errors."""
