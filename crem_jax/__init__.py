"""crem_jax: compression-aware retrieval and generation, TPU-first (CREM, arXiv 2602.19091)."""
