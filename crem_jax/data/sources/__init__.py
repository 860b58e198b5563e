"""Data sources: what yields `crem_jax.data.records.Record`s, by name. `formats/` reads files."""
