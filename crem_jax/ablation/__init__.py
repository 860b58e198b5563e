"""The paper's ablation and studies of one setting at a time, on the embedded world."""
