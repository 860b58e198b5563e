"""Comprehension benchmarks in VLMEvalKit's format: TSV files of questions about pictures."""
