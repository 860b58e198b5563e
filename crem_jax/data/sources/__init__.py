"""Data sources: every one yields `crem_jax.data.records.Record`s."""
