"""Comprehension benchmarks in VLMEvalKit's form: TSV files of questions about pictures."""
