"""From a real image to something the engine can edit: inversion, attention injection, masks."""
